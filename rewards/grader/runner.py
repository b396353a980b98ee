"""The small C program that runs an untrusted program under limits (`runner.c`): building it, reading its results.

It exists because the alternative, one bubblewrap per test, costs several milliseconds a test where this costs a
fraction of one (`python scripts/bench.py grader` measures it). It is compiled once, by the compiler that grading needs
anyway.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import GraderError, GraderFault
from rewards.grader.scratch import grader_cache

SOURCE = Path(__file__).with_name("runner.c")
RESULTS = "results"
MESSAGES = "messages"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run of a program may use. `cpu_s` counts CPU time of all threads; `wall_s` is a far backstop."""

    cpu_s: float
    memory_bytes: int  # of address space
    file_bytes: int  # of any file, so also of the output
    wall_s: float
    idle_s: float = 3.0  # without using the CPU at all

    def arguments(self) -> list[str]:
        return [
            f"cpu={max(1, round(self.cpu_s * 1000))}",
            f"wall={round(self.wall_s * 1000)}",
            f"idle={round(self.idle_s * 1000)}",
            f"as={self.memory_bytes}",
            f"fsize={self.file_bytes}",
        ]


@dataclass(frozen=True, slots=True)
class Run:
    """How one run ended.

    `how`: "exit" and "signal" carry the code; "cpu" and "idle" are time-outs; "output" is too much output; "starved"
    means that other work left the program no CPU time; "unstarted" carries the errno of exec.
    """

    test: int
    how: str
    code: int
    cpu_s: float
    memory_bytes: int
    wall_s: float


def build_runner() -> Path:
    """The compiled runner, from the cache or made now. Raises `GraderError` when it does not compile or start."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    binary = grader_cache() / f"runner-{digest}"
    if _starts(binary):
        return binary
    temporary = binary.with_name(f"{binary.name}.{os.getpid()}.tmp")
    # Static, for it starts faster and has a small memory of its own; some systems lack the static C library.
    for linkage in (["-static"], []):
        command = ["gcc", "-O2", *linkage, "-o", str(temporary), str(SOURCE)]
        try:
            made = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise GraderError("gcc is missing: install it (Debian, Ubuntu: apt-get install g++)") from None
        if made.returncode == 0:
            os.replace(temporary, binary)
            if _starts(binary):
                return binary
            raise GraderError(f"{binary} cannot be started: set TINYLORA_CACHE to a folder that lets programs run")
    first_error = next((line for line in made.stderr.splitlines() if "error" in line), made.stderr.strip()[-200:])
    raise GraderError(f"{SOURCE.name} does not compile here: {first_error}")


def _starts(binary: Path) -> bool:
    """Whether the runner is there, undamaged, and made for this machine."""
    try:
        return subprocess.run([binary, "abi"], stdout=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False


def read_results(folder: Path) -> list[Run]:
    """The runs recorded in a results folder, in order. Raises `GraderFault` when the runner did not come to its end."""
    try:
        lines = (folder / RESULTS).read_text().splitlines()
    except FileNotFoundError:
        lines = []
    if not lines or lines[-1] != "done":
        raise GraderFault("the runner stopped before its end")
    runs = []
    for line in lines[:-1]:
        test, how, code, cpu_us, kilobytes, wall_us = line.split()
        runs.append(Run(int(test), how, int(code), int(cpu_us) / 1e6, int(kilobytes) * 1024, int(wall_us) / 1e6))
    return runs
