"""Commands run as forks of one process that has imported their libraries, which takes each of them half a minute
otherwise: `Forks().run("scripts/train.py", ...)` is what `subprocess.run` would give.

On a GPU, where a fork cannot use what its parent has initialised, each is a new Python.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Forked:
    """A command that has been started. What it prints goes to two files in `folder`."""

    def __init__(self, forks: Forks, pid: int, folder: Path) -> None:
        self._forks, self.pid, self._folder = forks, pid, folder
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.ask({"poll": self.pid})
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Until it ends; kills it and raises `TimeoutExpired` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout, *self._printed())
            time.sleep(0.02)
        assert self.returncode is not None
        return subprocess.CompletedProcess([], self.returncode, *self._printed())

    def _printed(self) -> tuple[str, str]:
        return (self._folder / "stdout").read_text(), (self._folder / "stderr").read_text()


class Forks:
    """The process that commands are forks of; it starts with the first of them. A context manager."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._folders: list[tempfile.TemporaryDirectory] = []

    def start(self, script: str | Path, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Forked:
        """script: of the repository, or a path. env: changes of the environment."""
        self._folders.append(tempfile.TemporaryDirectory())
        folder = self._folders[-1].name
        command = [str(ROOT / script), *map(str, arguments)]
        pid = self.ask({"command": command, "cwd": str(cwd), "env": dict(env or {}), "output": folder})
        return Forked(self, pid, Path(folder))

    def run(
        self,
        script: str | Path,
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        return self.start(script, *arguments, cwd=cwd, env=env).wait(timeout)

    def ask(self, request: dict[str, Any]) -> Any:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.communicate()
        for folder in self._folders:
            folder.cleanup()


def serve() -> None:
    """Answer requests until there are no more. Returns in every fork, too, when its command has ended."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    forked = not import_libraries()
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            ended, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
            running -= {ended}
        else:
            answer = os.fork()
            if answer == 0:
                os.close(answers)
                become(request, forked)
                return
            running.add(answer)
        os.write(answers, f"{json.dumps(answer)}\n".encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def import_libraries() -> bool:
    """Import what commands import; not, and true, where there is a GPU."""
    from pipeline.environment import has_gpu, prepare_environment

    if has_gpu():
        return True
    prepare_environment(str(ROOT))
    from pipeline.policy import models

    models.import_libraries()
    import pipeline.training.run
    import pipeline.training.trainer  # noqa: F401

    return False


def become(request: dict[str, Any], forked: bool) -> None:
    """Be the command."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{request['output']}/{name}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    script = request["command"][0]
    if not forked:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, *request["command"]])
    sys.argv = request["command"]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    serve()
