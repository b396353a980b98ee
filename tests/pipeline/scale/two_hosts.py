"""A cluster of two machines on one: two hosts with a network, a name, processes and temporary files of their own.

python tests/pipeline/scale/two_hosts.py FOLDER

Follows the ten lines of docs/scale.md, then kills the second host's raylet in the midst of a run and starts it again,
and tries another token and another address. Needs root and Linux's namespaces; where these cannot be made it says why
and ends with 0. Prints one line for each command; what they print is in FOLDER. The exit code is 1 where one does not
end as it should.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.pipeline.kills import missing, steps_done  # noqa: E402

FIRST, SECOND, NOBODY = "10.77.0.1", "10.77.0.2", "10.77.0.9"
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
# A name, an address book, temporary files, and one core, which Ray reads where containers have their share.
BOOT = """set -e
hostname $1
mount --bind $2/hosts /etc/hosts
mkdir -p /tmp/ray
for folder in /tmp/ray /dev/shm /sys/fs/cgroup; do mount -t tmpfs tmpfs $folder; done
echo 100000 100000 > /sys/fs/cgroup/cpu.max
ip link set lo up
echo ready
exec sleep infinity"""
SIZES = "--prompts-per-step 4 --num-generations 4 --max-samples 40 --eval-problems 8 --grader-workers 1"
STEPS = 14  # of the run that is disturbed
LIMIT = 600.0  # seconds for one command


class Host:
    """A host of one core; all its processes end when it is closed. home: with a token and caches of its own."""

    def __init__(self, name: str, core: int, folder: Path) -> None:
        self.name, self.core, self.folder, self.home = name, core, folder, folder / name
        self.home.mkdir()
        (self.home / "hosts").write_text(f"127.0.0.1 localhost\n{FIRST} first\n{SECOND} second\n")
        bound = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork", "--mount-proc", "--kill-child"]
        command = [*bound, "sh", "-c", BOOT, "sh", name, str(self.home)]  # nothing outlives this process
        self._init = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._init.stdout is not None and self._init.stderr is not None
        if self._init.stdout.readline() != b"ready\n":
            raise OSError(self._init.stderr.read().decode().strip())
        self.inside = psutil.Process(self._init.pid).children()[0]

    def start(self, text: str, name: str, home: Path | None = None) -> subprocess.Popen[bytes]:
        """Begin a command there, in the checkout; what it prints goes to a file."""
        entered = ["nsenter", f"--target={self.inside.pid}", *NAMESPACES, "taskset", "--cpu-list", str(self.core)]
        clean = ["env", "-i", f"--chdir={ROOT}", f"HOME={home or self.home}", f"PATH={os.environ['PATH']}"]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen([*entered, *clean, *text.split()], stdout=log, stderr=log)

    def kill_raylet(self) -> None:
        next(process for process in self.inside.children(recursive=True) if process.name() == "raylet").kill()

    def close(self) -> None:
        self._init.kill()
        self._init.wait()


class Story:
    """What is run, and what of it did not end as it should."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.wrong = folder, list[str]()

    def check(self, what: str, good: bool, more: str = "") -> None:
        print(f"{'ok   ' if good else 'WRONG'} {what}", *([more] if not good and more else []), sep="\n", flush=True)
        self.wrong += [] if good else [what]

    def run(self, host: Host, text: str, name: str, says: str = "", *, fails: bool = False, **home: Path) -> None:
        """A command that should end well unless it `fails`, and print what it `says`."""
        self.end(host, host.start(text, name, **home), text, name, says, fails)

    def end(
        self, host: Host, process: subprocess.Popen[bytes], text: str, name: str, says: str = "", fails: bool = False
    ) -> None:
        start = time.monotonic()
        code = process.wait(LIMIT)
        good = (code != 0) == fails and says in self.printed(name) and "Traceback" not in self.printed(name)
        what = f"{host.name}: {text}  ({code} after {time.monotonic() - start:.0f} s)"
        self.check(what, good, self.printed(name)[-2000:])

    def printed(self, name: str) -> str:
        """What a command printed, without the lines of tables."""
        return " ".join((self.folder / f"{name}.log").read_text().replace("│", " ").split())

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        start = time.monotonic()
        while not holds() and time.monotonic() - start < LIMIT:
            time.sleep(0.2)
        self.check(f"{what}, after {time.monotonic() - start:.0f} s", holds())


def connect(first: Host, second: Host) -> None:
    """A cable between two hosts."""
    link = f"name cable netns {first.inside.pid} type veth peer name cable netns {second.inside.pid}"
    subprocess.run(["ip", "link", "add", *link.split()], check=True)
    for host, address in ((first, FIRST), (second, SECOND)):
        for text in (f"ip address add {address}/24 dev cable", "ip link set cable up"):
            host.start(text, "cable").wait(10)


def token(home: Path, source: Path | None) -> None:
    """Copy a host's token, as `scp` would; or write another."""
    path = home / ".ray/auth_token"
    path.parent.mkdir(parents=True)
    path.write_text((source / ".ray/auth_token").read_text() if source else "0" * 64)


def tell(story: Story, first: Host, second: Host) -> None:
    ray, train = ".venv/bin/ray", f".venv/bin/python scripts/train.py --u 32 --model starter {SIZES}"
    folder = story.folder
    story.run(first, f"{ray} get-auth-token --generate", "token")
    story.run(first, f"{ray} start --head --port 6379 --node-ip-address {FIRST}", "head")
    token(second.home, first.home)
    joins = f"RAY_AUTH_MODE=token {ray} start --address {FIRST}:6379"
    story.run(second, joins, "joins")
    both = f"on first ({FIRST}), second ({SECOND})"
    story.run(first, ".venv/bin/python scripts/doctor.py --vllm --ray-address auto", "doctor", both)
    short = f"{train} --vllm --replicas 2 --ray-address auto --steps 2 --output-dir {folder}/short"
    story.run(first, short, "short", "replica 1 (node second, ")
    story.check("both steps, each with 16 completions", not missing(folder / "short", 2, 16))

    run = folder / "killed"
    text = f"{train} --no-vllm --replicas auto --ray-address auto --steps {STEPS} --output-dir {run}"
    driver = first.start(text, "killed")
    story.until("three steps with both", lambda: steps_done(run) >= 3)
    second.kill_raylet()
    story.until("the second host's raylet killed, its replica missed", lambda: "taken out" in story.printed("killed"))
    done = steps_done(run)
    story.until("two steps more without it", lambda: steps_done(run) >= done + 2)
    story.run(second, joins, "joins-again")
    story.until("a replica there again", lambda: story.printed("killed").count(" joined after") == 2)
    story.end(first, driver, text, "killed")
    faults = missing(run, STEPS, 16)
    story.check(f"all {STEPS} steps, each with 16 completions", not faults, "; ".join(faults))

    stranger = folder / "stranger"
    token(stranger, None)
    says = "no Ray cluster can be used there"
    story.run(first, f"{train} --replicas 2 --ray-address auto", "token-wrong", says, fails=True, home=stranger)
    says = f"nobody answers at {NOBODY}"
    story.run(first, f"{train} --replicas 2 --ray-address {NOBODY}:6379", "address-wrong", says, fails=True)
    for host in (second, first):
        story.run(host, f"{ray} stop", f"stop-{host.name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new, for what the commands print")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True)
    story, hosts = Story(folder), list[Host]()
    try:
        for core, name in enumerate(("first", "second")):
            hosts.append(Host(name, core % (os.cpu_count() or 1), folder))
        connect(*hosts)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"skipped: two hosts cannot be made here ({error})")
        return 0
    else:
        tell(story, *hosts)
    finally:
        for host in hosts:
            host.close()
    print(f"{len(story.wrong)} things did not end as they should")
    return int(bool(story.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
