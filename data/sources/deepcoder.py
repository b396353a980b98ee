"""agentica-org/DeepCoder-Preview-Dataset: four configurations, four shapes of tests, all as JSON text.

Problems that ask for a Python function are skipped: a program that reads stdin cannot answer them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from data.sources.base import (
    Loaded,
    Record,
    Skip,
    Source,
    columns_to_tests,
    decoded,
    distinct,
    joined,
    strip_fence,
    text,
)
from rewards.problem import Problem, Test

STDIN = ("stdin", "stdin_stdout", "", None)
MAX_SOLUTIONS = 3


def convert(record: Record) -> Loaded:
    statement = text(record, "problem").replace("\r\n", "\n").strip()
    tests = _tests(decoded(record.get("tests"), "tests"))
    metadata = decoded(record.get("metadata") or {}, "metadata")
    if isinstance(metadata, Mapping) and metadata.get("func_name"):
        raise Skip("asks for a Python function")
    if isinstance(record.get("starter_code"), str) and record["starter_code"].strip():
        raise Skip("asks for a Python function")
    if not tests:
        raise Skip("no tests")
    solutions = tuple(("python", strip_fence(s)) for s in (record.get("solutions") or ())[:MAX_SOLUTIONS] if s)
    digest = hashlib.sha256(statement.encode()).hexdigest()[:12]
    name = _configuration(record)
    return Loaded(
        Problem(id=f"deepcoder/{name}-{digest}", statement=statement, tests=distinct(tests), source=name), solutions
    )


def _tests(tests: Any) -> tuple[Test, ...]:
    if isinstance(tests, Mapping):  # taco
        if tests.get("fn_name"):
            raise Skip("asks for a Python function")
        return columns_to_tests(tests.get("inputs") or [], tests.get("outputs") or [])
    if not isinstance(tests, list):
        raise Skip("field 'tests' is neither a list nor columns")
    for test in tests:  # primeintellect, lcbv5, codeforces
        if not isinstance(test, Mapping) or "input" not in test or "output" not in test:
            raise Skip("a test has no input or no output")
        if test.get("fn_name") or test.get("type", test.get("testtype")) not in STDIN:
            raise Skip("asks for a Python function")
    return tuple(Test(joined(test["input"]), joined(test["output"])) for test in tests)


def _configuration(record: Record) -> str:
    """The configuration is not written in the record; the shape of its tests tells it."""
    tests = decoded(record.get("tests"), "tests")
    if isinstance(tests, Mapping):
        return "taco"
    first = tests[0] if tests else {}
    return "primeintellect" if "type" in first else "lcbv5" if "testtype" in first else "codeforces"


SOURCE = Source("deepcoder", convert, hub="agentica-org/DeepCoder-Preview-Dataset", config="primeintellect")
