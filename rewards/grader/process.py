"""One grader process (`rewards/grader/worker.py`) and the pipe to it.

It is started by exec, never by fork: the trainer may hold CUDA and gigabytes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from select import POLLHUP, POLLIN, poll
from typing import BinaryIO, cast

from rewards.grader.header import Shortcut
from rewards.grader.judge import JudgeConfig
from rewards.grader.scratch import sweep
from rewards.grader.worker import PREFIX, receive, send
from rewards.problem import Problem
from rewards.verdict import Verdict

ROOT = Path(__file__).resolve().parents[2]
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from rewards.grader.worker import main; main(int(sys.argv[2]))"
_KEPT_VARIABLES = ("PATH", "HOME", "TINYLORA_CACHE", "XDG_CACHE_HOME", "TMPDIR", "QHOME", "QLIC")
_LONGEST_WAIT = 2_000_000.0  # seconds; poll() counts milliseconds in 31 bits


class GraderProcess:
    """Used by one thread, which also starts the process: the kernel ties the process's life to the thread that started
    it."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    @property
    def process_id(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        """Start the process before there is work. A failure shows when there is."""
        with suppress(OSError):
            self._running()

    def grade(self, source: str, problem: Problem, shortcuts: Sequence[Shortcut] = ()) -> Verdict | str:
        """A verdict, or what was wrong with the grader."""
        try:
            process = self._running()
        except OSError as error:
            return f"a grader process cannot be started: {error}"
        if process is None:
            return "the grader pool was closed"
        try:
            send(cast(BinaryIO, process.stdin), (source, problem, shortcuts))
            replies = cast(BinaryIO, process.stdout)
            waiting = poll()
            waiting.register(replies, POLLIN | POLLHUP)
            if waiting.poll(1000 * self.patience(problem)):
                return receive(replies)
            reason = "the grader process stopped responding"
        except (EOFError, BrokenPipeError):
            reason = "the grader process died"
        self._discard()
        return reason

    def patience(self, problem: Problem) -> float:
        """Seconds after which a grader must be broken: every step inside has a shorter limit of its own."""
        limit = problem.time_limit * self.config.time_factor + self.config.time_extra
        each = max(20.0, 10 * limit)
        return min(300.0 + 2 * each + each * len(problem.tests), _LONGEST_WAIT)

    def _running(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopped:
                return None
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _BOOT, str(ROOT), str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                    cwd="/",
                    env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                )
                send(cast(BinaryIO, self._process.stdin), self.config)
            return self._process

    def _discard(self) -> None:
        """Forget a broken process; the next program gets a new one."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            _kill(process)
            _reap(process)
            sweep(PREFIX)

    def stop(self) -> None:
        """End the process; safe to call from another thread and more than once."""
        with self._lock:
            self._stopped = True
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                _kill(process)
        if process is not None and threading.current_thread().name.startswith("grader-"):
            _reap(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a grader, which may be dead, with its group: a sandbox that is being set up does not end with its parent."""
    if process.returncode is None:  # its number may be another's when it has been waited for
        os.killpg(process.pid, signal.SIGKILL)


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
