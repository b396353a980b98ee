"""What grading one program yields. Plain data: no grading is done here.

`Verdict` is the judgement of a program, `TestVerdict` that of one test; both use `Status`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """The judgement's name. Everything but `ACCEPTED` and `NO_VERDICT` is the program's own failure."""

    ACCEPTED = "ACCEPTED"
    WRONG_ANSWER = "WRONG_ANSWER"
    TIME_LIMIT = "TIME_LIMIT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    RUNTIME_ERROR = "RUNTIME_ERROR"
    COMPILE_ERROR = "COMPILE_ERROR"
    NO_CODE = "NO_CODE"
    NO_VERDICT = "NO_VERDICT"  # a fault of the grader, twice: says nothing about the program


@dataclass(frozen=True, slots=True)
class TestVerdict:
    """One test of one program."""

    __test__ = False  # not a pytest class

    status: Status
    cpu_s: float = 0.0  # user and system time of the program
    memory_bytes: int = 0  # peak resident memory
    detail: str = ""  # why it failed, at most a few hundred characters

    def to_record(self) -> dict[str, Any]:
        record = {"verdict": self.status.value, "cpu_s": round(self.cpu_s, 6), "memory_bytes": self.memory_bytes}
        return record | ({"detail": self.detail} if self.detail else {})


@dataclass(frozen=True, slots=True)
class Verdict:
    """One program on one problem. `status` is that of the first test that was not accepted."""

    status: Status
    passed: int = 0  # accepted tests
    total: int = 0  # tests of the problem, also when none was run
    compiled: bool = False
    tests: tuple[TestVerdict, ...] = ()  # one for each test, in the problem's order; empty if none was run
    diagnostics: str = ""  # messages of the compiler, or what happened to the grader; at most 4 kB
    cpu_s: float = 0.0  # of all tests together
    compile_s: float = 0.0  # CPU seconds of the compiler
    header: str = ""  # precompiled header: "used", "rejected" (the program was compiled as it is), "" where none was
    cached: bool = False  # taken from the pool's cache, not graded again

    @property
    def accepted(self) -> bool:
        return self.status is Status.ACCEPTED

    def to_record(self) -> dict[str, Any]:
        """A JSON-ready dictionary, as `scripts/grade.py` writes it."""
        return {
            "verdict": self.status.value,
            "passed": self.passed,
            "total": self.total,
            "compiled": self.compiled,
            "tests": [test.to_record() for test in self.tests],
            "diagnostics": self.diagnostics,
            "cpu_s": round(self.cpu_s, 6),
            "compile_s": round(self.compile_s, 6),
            "cached": self.cached,
        }


MESSAGE_CHARACTERS = 300  # of a compiler's or a test's message, kept with a rollout


def first_message(verdict: Verdict) -> str:
    """Why a program was not accepted: the compiler's first error, or what was said of the first failed test."""
    message = verdict.diagnostics or next((test.detail for test in verdict.tests if test.detail), "")
    if verdict.status is Status.COMPILE_ERROR:
        lines = message.splitlines()
        message = next((line for line in lines if "error: " in line or "undefined reference" in line), message)
    return message.strip()[:MESSAGE_CHARACTERS]
