"""deepmind/code_contests (CC BY 4.0).

Integers stand for names as in the hub's tables, which differ from those of the original protocol buffers. Tests are
columns; limits are a duration and bytes. Problems that read or write files, show images, or end in a cut-off test are
skipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.sources.base import (
    Loaded,
    Record,
    Skip,
    Source,
    columns_to_tests,
    distinct,
    memory_bytes,
    optional,
    seconds,
    text,
)
from rewards.problem import Problem

SOURCES = ("unknown", "codechef", "codeforces", "hackerearth", "codejam", "atcoder", "aizu")
DIFFICULTIES = ("", "EASY", "MEDIUM", "HARD", "HARDER", "HARDEST", "EXTERNAL", *"ABCDEFGHIJKLMNOPQRSTUV")
LANGUAGES = {2: "cpp", 3: "python"}  # 1 is Python 2, 4 Java
MAX_SOLUTIONS = 5


def convert(record: Record) -> Loaded:
    if optional(record, "input_file") or optional(record, "output_file"):
        raise Skip("reads or writes files")
    description = text(record, "description").replace("\r\n", "\n")
    if "<image>" in description:
        raise Skip("the statement shows an image")
    tests = distinct(
        test
        for name in ("public_tests", "private_tests", "generated_tests")
        for test in _tests(record.get(name), public=name == "public_tests")
    )
    tests = tuple(t for t in tests if not t.input.rstrip().endswith("...") and not t.output.rstrip().endswith("..."))
    labels = [_name(DIFFICULTIES, record.get("difficulty"))]
    if record.get("cf_rating"):
        labels.append(str(int(record["cf_rating"])))
    solutions = _solutions(record.get("solutions"))
    problem = Problem(
        id=f"code_contests/{text(record, 'name')}",
        statement=description.strip(),
        tests=tests,
        time_limit=seconds(record.get("time_limit")),
        memory_limit=memory_bytes(record.get("memory_limit_bytes")),
        source=_name(SOURCES, record.get("source")),
        difficulty=" ".join(label for label in labels if label),
        solution=next((source for language, source in solutions if language == "cpp"), ""),
        license="CC BY 4.0",
    )
    return Loaded(problem, solutions)


def _tests(columns: Any, public: bool) -> Any:
    if not columns:
        return ()
    return columns_to_tests(list(columns["input"]), list(columns["output"]), public)


def _name(names: tuple[str, ...], value: Any) -> str:
    if isinstance(value, str):
        return value
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else ""


def _solutions(columns: Any) -> tuple[tuple[str, str], ...]:
    """Up to five, C++ first."""
    if not isinstance(columns, Mapping):
        return ()
    pairs = zip(columns.get("language") or (), columns.get("solution") or (), strict=True)
    known = [(LANGUAGES[language], source) for language, source in pairs if language in LANGUAGES]
    return tuple(sorted(known, key=lambda pair: pair[0])[:MAX_SOLUTIONS])


SOURCE = Source("code_contests", convert, hub="deepmind/code_contests")
