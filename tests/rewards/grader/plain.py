"""The reference for the grader: plain `g++ -O2 -std=c++17` in a folder, and the program run on nothing."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

COMMANDS = {
    "g++": ("g++", "-O2", "-std=c++17", "main.cpp"),
    "clang++": ("clang++", "-O2", "-std=c++17", "main.cpp"),
    "gcc": ("gcc", "-O2", "-std=gnu17", "main.c", "-lm"),
}


@dataclass(frozen=True)
class Outcome:
    """`kind`: "compile" and "link" are errors, "crash" is an end other than exit code 0, "end" carries the output."""

    kind: str
    output: str = ""
    messages: str = ""


def error_kind(messages: str) -> str:
    return "link" if "undefined reference" in messages or "multiple definition" in messages else "compile"


def outcome(source: str, compiler: str = "g++", seconds: float = 10.0) -> Outcome:
    """What becomes of a program without the grader."""
    command = COMMANDS[compiler]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / next(word for word in command if word.startswith("main."))).write_bytes(source.encode())
        made = subprocess.run([*command, "-o", "program"], cwd=folder, capture_output=True, check=False)
        messages = made.stderr.decode(errors="replace")
        if made.returncode:
            return Outcome(error_kind(messages), messages=messages)
        try:
            ran = subprocess.run(["./program"], cwd=folder, capture_output=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return Outcome("crash", messages="time-out")
        if ran.returncode:
            return Outcome("crash", messages=ran.stderr.decode(errors="replace"))
        return Outcome("end", output=ran.stdout.decode(errors="replace"))
