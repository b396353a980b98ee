"""One schema for everything that can be graded: a statement, its tests, and how an output is judged.

The dataclasses are plain and immutable, cheap to pickle to a grader process, and know nothing of files:
`data/problems.py` reads and writes them as JSON lines. Units are float seconds and bytes, whatever the source data set
used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from storage.errors import UserError

LANGUAGES = ("cpp", "c", "python", "q")  # `rewards/grader/toolchains.py` has an entry for each
LIBRARIES = ("crypto", "ssl")  # that a problem may ask to be linked
MEGABYTE = 1_000_000
DEFAULT_TIME_LIMIT = 2.0
DEFAULT_MEMORY_LIMIT = 256 * MEGABYTE

MAX_TIME_LIMIT = 3600.0
MAX_MEMORY_LIMIT = 1 << 46

CHECKERS = ("tokens", "exact", "caseless", "float", "unordered", "contains", "program")


class ProblemError(UserError, ValueError):
    """A record that is not a valid problem; the message says which field and why."""


@dataclass(frozen=True, slots=True)
class Test:
    """One run of the program: `input` goes to stdin, `output` is what a right program prints."""

    __test__ = False  # not a pytest class

    input: str
    output: str
    public: bool = False  # shown to the model as a sample


@dataclass(frozen=True, slots=True)
class Checker:
    """How an output is compared with the expected one (see `rewards/grader/compare.py`).

    `tolerance` is absolute or relative and belongs to `float`; `source` is a C++ checker program for `program`
    (testlib convention: arguments input, output, answer; exit code 0 accepts).
    """

    type: str = "tokens"
    tolerance: float = 1e-6
    source: str = ""

    def __post_init__(self) -> None:
        if self.type not in CHECKERS:
            raise ProblemError(f"checker type {self.type!r} is unknown; use one of {', '.join(CHECKERS)}")
        if self.type == "program" and not self.source:
            raise ProblemError("checker type 'program' needs the checker's source")
        if not 0 <= self.tolerance < 1:
            raise ProblemError(f"checker tolerance {self.tolerance} is outside [0, 1)")


@dataclass(frozen=True, slots=True)
class Problem:
    """A task with everything needed to prompt for it and to grade what comes back."""

    id: str
    statement: str
    tests: tuple[Test, ...] = ()
    time_limit: float = DEFAULT_TIME_LIMIT  # seconds of CPU time per test
    memory_limit: int = DEFAULT_MEMORY_LIMIT  # bytes
    checker: Checker = field(default_factory=Checker)
    language: str = "cpp"
    source: str = ""  # the data set or family it comes from
    cluster: str = ""  # problems of one cluster are alike, so they are no independent observations
    difficulty: str = ""  # one or more labels, such as "B 1200" (see data/difficulty.py)
    answer: str = ""  # for tasks whose answer is not a program
    numbers: tuple[int, ...] = ()  # of a Countdown problem, whose target is the answer
    solution: str = ""  # a right program, or the worked answer: what supervised training imitates
    preamble: str = ""  # code that a completion may continue: a signature up to its brace
    tests_are_code: bool = False  # a test's input is code to be put behind the program (see rewards/grader/harness.py)
    libraries: tuple[str, ...] = ()  # of `LIBRARIES`, linked into the program
    license: str = ""  # of the statement and tests, with whom to credit

    def __post_init__(self) -> None:
        if not 0 < self.time_limit <= MAX_TIME_LIMIT:
            raise ProblemError(f"time_limit {self.time_limit} is not a number of seconds up to {MAX_TIME_LIMIT:g}")
        object.__setattr__(self, "time_limit", float(self.time_limit))
        object.__setattr__(self, "libraries", tuple(self.libraries))
        if unknown := set(self.libraries) - set(LIBRARIES):
            raise ProblemError(f"library {min(unknown)!r} is unknown; use one of {', '.join(LIBRARIES)}")
        if not 0 < self.memory_limit <= MAX_MEMORY_LIMIT:
            raise ProblemError(f"memory_limit {self.memory_limit} is not a number of bytes up to {MAX_MEMORY_LIMIT}")

    @property
    def samples(self) -> tuple[Test, ...]:
        return tuple(test for test in self.tests if test.public)

    def to_record(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `problem_from_record` is its inverse."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record["tests"] = [{"input": t.input, "output": t.output, "public": t.public} for t in self.tests]
        record["checker"] = {f.name: getattr(self.checker, f.name) for f in fields(self.checker)}
        return record


def _take(record: Mapping[str, Any], name: str, kinds: type | tuple[type, ...], default: Any = None) -> Any:
    value = record.get(name)
    if value is None:
        if default is None:
            raise ProblemError(f"field {name!r} is missing")
        return default
    if not isinstance(value, kinds) or isinstance(value, bool) and kinds is not bool:
        raise ProblemError(f"field {name!r} has type {type(value).__name__}")
    return value


def _test_from_record(index: int, record: Any) -> Test:
    if not isinstance(record, Mapping):
        raise ProblemError(f"test {index} is not an object")
    try:
        return Test(
            input=_take(record, "input", str),
            output=_take(record, "output", str),
            public=_take(record, "public", bool, default=False),
        )
    except ProblemError as error:
        raise ProblemError(f"test {index}: {error}") from None


def problem_from_record(record: Any) -> Problem:
    """Validate one decoded JSON record. Raises `ProblemError` naming the field; unknown fields are ignored.

    `time_limit` is in seconds. Memory is `memory_limit` in bytes, or `memory_limit_mb` in megabytes.
    """
    if not isinstance(record, Mapping):
        raise ProblemError("the record is not a JSON object")
    tests = _take(record, "tests", list, default=[])
    language = _take(record, "language", str, default="cpp")
    if language not in ("", *LANGUAGES):  # empty where no program is asked for
        raise ProblemError(f"field 'language' is {language!r}; use one of {', '.join(LANGUAGES)}")
    identifier = record.get("id")
    if not isinstance(identifier, str | int) or isinstance(identifier, bool) or identifier == "":
        raise ProblemError("field 'id' must be a non-empty string or an integer")
    return Problem(
        id=str(identifier),
        statement=_take(record, "statement", str),
        tests=tuple(_test_from_record(index, test) for index, test in enumerate(tests)),
        time_limit=_take(record, "time_limit", (int, float), default=DEFAULT_TIME_LIMIT),
        memory_limit=_memory_from_record(record),
        checker=_checker_from_record(_take(record, "checker", Mapping, default={})),
        language=language,
        source=_take(record, "source", str, default=""),
        cluster=_take(record, "cluster", str, default=""),
        difficulty=str(record.get("difficulty") or record.get("difficulty_hint") or ""),
        answer=_take(record, "answer", str, default=""),
        numbers=_numbers_from_record(_take(record, "numbers", (list, tuple), default=[])),
        solution=_take(record, "solution", str, default=""),
        preamble=_take(record, "preamble", str, default=""),
        tests_are_code=_take(record, "tests_are_code", bool, default=False),
        libraries=_libraries_from_record(_take(record, "libraries", (list, tuple), default=[])),
        license=_take(record, "license", str, default=""),
    )


def _memory_from_record(record: Mapping[str, Any]) -> int:
    if record.get("memory_limit") is not None:
        return _take(record, "memory_limit", int)
    megabytes = _take(record, "memory_limit_mb", (int, float), default=DEFAULT_MEMORY_LIMIT / MEGABYTE)
    if not 0 < megabytes <= MAX_MEMORY_LIMIT / MEGABYTE:
        raise ProblemError(f"memory_limit_mb {megabytes} is not a plausible number of megabytes")
    return int(megabytes * MEGABYTE)


def _numbers_from_record(values: list[Any]) -> tuple[int, ...]:
    if any(not isinstance(value, int) or isinstance(value, bool) for value in values):
        raise ProblemError("field 'numbers' must contain only integers")
    return tuple(values)


def _libraries_from_record(values: list[Any]) -> tuple[str, ...]:
    if any(not isinstance(value, str) for value in values):
        raise ProblemError("field 'libraries' must contain only names")
    return tuple(values)


def _checker_from_record(record: Mapping[str, Any]) -> Checker:
    """Also reads the Kattis spelling `{type, tol, case_sensitive}`: tokens without case are `caseless`."""
    kind = _take(record, "type", str, default="tokens")
    if kind == "tokens" and record.get("case_sensitive") is False:
        kind = "caseless"
    name = "tolerance" if record.get("tolerance") is not None else "tol"
    return Checker(
        type=kind,
        tolerance=_take(record, name, (int, float), default=1e-6),
        source=_take(record, "source", str, default=""),
    )
