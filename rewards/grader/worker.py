"""A grader process: reads programs from its standard input, writes verdicts to its standard output.

The pool starts it as `python -I -S -c BOOT`, so that neither the trainer's main module nor any site package is
imported. Messages are pickles behind an 8-byte length: first a `JudgeConfig`, then `(source, problem, shortcuts)`, each
answered by a `Verdict` or by a text that says what was wrong with the grader.

It ends when its input ends or when the trainer dies (the kernel then sends SIGTERM), and removes its files.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import signal
import struct
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from rewards.errors import GraderError, GraderFault
from rewards.grader.header import HeaderLease
from rewards.grader.judge import Judge, JudgeConfig
from rewards.grader.scratch import ScratchFolder

PREFIX = "grader"
NICENESS = 5  # the trainer goes first; limits count CPU time, so this costs no verdict
_LENGTH = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1


def send(stream: BinaryIO, message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """The next message. Raises EOFError at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def _end(*_: object) -> None:
    """Leave, and let nothing interrupt what is cleaned up on the way: a trainer's death is its pipe's end, too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


def _prepare(parent: int) -> None:
    signal.signal(signal.SIGTERM, _end)
    atexit.register(os.killpg, os.getpid(), signal.SIGKILL)  # last, with a sandbox that is being set up: see process.py
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which then ends us
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(0)
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    # A session of its own may have a share of the CPU of its own, whatever the niceness of its members: set that, too.
    _tell_kernel("/proc/self/autogroup", str(NICENESS))
    _tell_kernel("/proc/self/oom_score_adj", "1000")  # when memory runs out, lose a grader and not the trainer


def _tell_kernel(path: str, value: str) -> None:
    """Not essential; some kernels lack the file and some containers forbid it."""
    with suppress(OSError), open(path, "w") as file:
        file.write(value)


def main(parent: int) -> None:
    _prepare(parent)
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    with ExitStack() as stack:
        folder = stack.enter_context(ScratchFolder(f"{PREFIX}-{os.getpid()}"))
        try:
            config: JudgeConfig = receive(requests)
            if config.header_folder:  # so that the last process removes it, also when the trainer was killed
                stack.enter_context(HeaderLease(Path(config.header_folder)))
            judge = Judge(config, folder)
            while True:
                source, problem, shortcuts = receive(requests)
                try:
                    reply: Any = judge.grade(source, problem, shortcuts)
                except (GraderFault, GraderError, OSError, UnicodeError) as fault:
                    if not folder.is_dir():  # removed, as some systems do at a logout: the next grader has its own
                        _end()
                    reply = str(fault)
                send(replies, reply)
        except (EOFError, BrokenPipeError):
            _end()
