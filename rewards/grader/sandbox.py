"""What a program may see and do while it compiles and while it runs; chosen once, by trying it out.

    tier A  bubblewrap (own mount, process, network, IPC and host-name namespaces) + seccomp + rlimits
    tier B  landlock (files) + seccomp + rlimits, where bubblewrap cannot make namespaces (many containers)
    tier C  seccomp where the kernel has it, and rlimits: files of the host are readable. Refused unless asked for

In tiers A and B a program reads the system's libraries and itself, writes its standard output, and starts no process.
It finds no other file, no network, no /proc and no device. Compilers additionally see the compiler's own folders and
one scratch folder.

Not promised by any tier: protection from bugs in the kernel (a shared kernel is the only wall; use a virtual machine
against people who mean it), from timing or cache side channels, or from a slow-down of other programs by use of memory
bandwidth and of the page cache. No cgroup is used: limits hold per process, which is a total because a running program
is one process; the few processes of one compilation may each use the limit. Tier B does not hide names and sizes of
files (`stat` works), nor the list of processes' numbers.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import GraderError, GraderFault
from rewards.grader.runner import Limits, Run, build_runner, read_results
from rewards.grader.scratch import ScratchFolder
from rewards.grader.toolchains import SEARCH_PATH

TIERS = {
    "A": "bubblewrap, seccomp, rlimits",
    "B": "landlock, seccomp, rlimits",
    "C": "rlimits and seccomp only",
}
_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64")
_COMPILERS = (
    *_LIBRARIES,
    "/usr/bin",
    "/bin",
    "/usr/libexec",
    "/usr/include",
    "/usr/local/include",
    "/etc/alternatives",
)
_ENVIRONMENT = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}
_PROBE_LIMITS = Limits(cpu_s=2.0, memory_bytes=256 << 20, file_bytes=1 << 20, wall_s=20.0)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Runs commands inside the chosen tier. Cheap to pickle to a grader process."""

    tier: str
    runner: str  # path of the compiled runner
    bubblewrap: str = ""  # path of bwrap, for tier A

    def compile(
        self,
        command: Sequence[str],
        folder: Path,
        limits: Limits,
        readable: Sequence[str] = (),
        started: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
    ) -> Run:
        """Run a compiler once, in `folder`, which it may write; its messages go to `folder/messages`.

        `started` is handed the process, whose end is the end of all that it started.
        """
        shown = (*_COMPILERS, *readable)
        options = ["filter=compile", *limits.arguments()]
        environment = _ENVIRONMENT | {"TMPDIR": str(folder)}
        (run,) = self._call(options, command, folder, None, shown, (str(folder),), environment, started)
        return run

    def run(
        self,
        command: Sequence[str],
        tests: Sequence[int],
        inputs: Path,
        outputs: Path,
        limits: Limits,
        *,
        readable: Sequence[str] = (),
        environment: Sequence[tuple[str, str]] = (),
        stop_after: int = 2,
    ) -> list[Run]:
        """Run a program on `inputs/<n>.in` for each n of `tests`, in order, into `outputs/<n>.out`.

        Stops after `stop_after` time-outs, so the result may be shorter than `tests`.
        """
        options = ["filter=run", *limits.arguments(), f"stop={stop_after}", "tests=" + ",".join(map(str, tests))]
        shown = (*_LIBRARIES, *readable)
        return self._call(options, command, outputs, inputs, shown, (), _ENVIRONMENT | dict(environment))

    def _call(
        self,
        options: list[str],
        command: Sequence[str],
        outputs: Path,
        inputs: Path | None,
        readable: Sequence[str],
        writable: Sequence[str],
        environment: dict[str, str],
        started: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
    ) -> list[Run]:
        folders = {"out": outputs, "in": inputs, "proc": Path("/proc")}
        opened = {name: os.open(path, os.O_RDONLY | os.O_DIRECTORY) for name, path in folders.items() if path}
        options += [f"{name}={descriptor}" for name, descriptor in opened.items()]
        if self.tier == "B":
            options += [f"ro={path}" for path in readable if os.path.exists(path)]
            options += [f"rw={path}" for path in writable]
        full = [self.runner, *options, "--", *command]
        if self.tier == "A":
            full = [*self._bubblewrap(readable, writable, environment), *full]
        try:
            with (outputs / "trouble").open("wb") as trouble:
                process = subprocess.Popen(
                    full,
                    stdin=subprocess.DEVNULL,
                    stdout=trouble,
                    stderr=trouble,
                    env=environment,
                    cwd=writable[0] if writable else "/",
                    pass_fds=tuple(opened.values()),
                )
                started(process)
                process.wait()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES):
                raise
            raise GraderFault(f"the sandbox did not start: {error}") from error
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        try:
            return read_results(outputs)
        except GraderFault as fault:
            said = (outputs / "trouble").read_bytes()[:300].decode(errors="replace").strip()
            raise GraderFault(f"{fault} (status {process.returncode}) {said}") from None

    def _bubblewrap(self, readable: Sequence[str], writable: Sequence[str], environment: dict[str, str]) -> list[str]:
        arguments = [self.bubblewrap, "--unshare-all", "--die-with-parent", "--as-pid-1", "--clearenv"]
        for name, value in environment.items():
            arguments += ["--setenv", name, value]
        for path in (self.runner, *readable):
            if os.path.islink(path) and path in _COMPILERS:  # /lib is a link to usr/lib on today's systems
                arguments += ["--symlink", os.readlink(path), path]
            elif os.path.exists(path):
                arguments += ["--ro-bind", path, path]
        for path in writable:
            arguments += ["--bind", path, path]
        return [*arguments, "--chdir", writable[0] if writable else "/", "--remount-ro", "/", "--"]

    def probe(self) -> list[str]:
        """What an attacker could do in here: the names of the attempts that worked, best none."""
        with ScratchFolder("probe") as folder:
            (folder / "0.in").touch()
            readable = (self.runner,) if self.tier == "B" else ()
            (run,) = self.run((self.runner, "probe"), (0,), folder, folder, _PROBE_LIMITS, readable=readable)
            if run.how != "exit" or run.code:
                raise GraderFault(f"the probe ended with {run.how} {run.code}")
            return (folder / "0.out").read_text().split()


def choose_sandbox(*, unsafe: bool = False, tier: str | None = None) -> tuple[Sandbox, str]:
    """The strongest tier that keeps every promise in a trial, and why the stronger ones were not taken.

    `tier` asks for one tier. Raises `GraderError` when only C is left and `unsafe` is False.
    """
    runner = str(build_runner())
    rejected: list[str] = []
    for name in ("A", "B"):
        if tier not in (None, name):
            continue
        bubblewrap = shutil.which("bwrap") or ""
        if name == "A" and not bubblewrap:
            rejected.append("A: bwrap is not installed (Debian, Ubuntu: apt-get install bubblewrap)")
            continue
        sandbox = Sandbox(name, runner, bubblewrap)
        try:
            allowed = sandbox.probe()
        except GraderFault as fault:
            rejected.append(f"{name}: {fault}")
            continue
        if not allowed:
            return sandbox, "; ".join(rejected)
        rejected.append(f"{name}: a program could still do {', '.join(allowed)}")
    reason = "; ".join(rejected)
    if tier in (None, "C") and unsafe:
        return Sandbox("C", runner), reason
    if tier == "C":
        reason = "tier C was requested"
    advice = "fix that, or accept the risk with --unsafe-grader"
    raise GraderError(f"no safe sandbox for untrusted programs ({reason}); {advice}")
