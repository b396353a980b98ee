"""Reads what people have on disk: JSON lines, solutions among them, and a folder of tests as contest packages keep
them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from rewards.problem import LANGUAGES, Checker, Problem, ProblemError, Test

SUFFIXES = {".cpp": "cpp", ".cc": "cpp", ".cxx": "cpp", ".c": "c", ".py": "python", ".q": "q"}


@dataclass(frozen=True, slots=True)
class Solution:
    """A program and the problem it is for; `index` counts the solutions of a file from 0."""

    index: int
    problem: Problem
    source: str


def json_lines(file: BinaryIO, name: object) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every line that is not blank. Raises `ProblemError` that names the file and the line."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number or a nesting without end
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise ProblemError(f"{name}, line {number}: not valid JSON ({reason})") from None


def read_solutions(path: str | Path, problems: Mapping[str, Problem]) -> list[Solution]:
    """Lines `{"problem_id": ..., "source": ...}`, with an optional `language`. Blank lines do not count.

    Raises `ProblemError`, which names file and line.
    """
    path = Path(path)
    solutions: list[Solution] = []
    with path.open("rb") as file:
        for number, record in json_lines(file, path):
            where = f"{path}, line {number}"
            if not isinstance(record, dict) or not isinstance(record.get("source"), str):
                raise ProblemError(f"{where}: a solution needs the text field 'source'")
            identifier = str(record.get("problem_id", ""))
            if identifier not in problems:
                raise ProblemError(f"{where}: no problem has the id {identifier!r} given as 'problem_id'")
            problem = problems[identifier]
            language = record.get("language") or problem.language
            if language not in LANGUAGES:
                raise ProblemError(f"{where}: language {language!r} is unknown; use one of {', '.join(LANGUAGES)}")
            solutions.append(Solution(len(solutions), replace(problem, language=language), record["source"]))
    if not solutions:
        raise ProblemError(f"{path}: the file contains no solutions")
    return solutions


def read_test_folder(
    folder: str | Path, *, time_limit: float, memory_limit: int, checker: Checker, identifier: str = "problem"
) -> Problem:
    """A problem from `*.in` and `*.ans` files of the same names, in any depth, in order of their paths.

    Raises `ProblemError` when there is none or an answer is missing.
    """
    folder = Path(folder)
    tests = []
    for path in sorted(folder.rglob("*.in")):
        answer = path.with_suffix(".ans")
        if not answer.is_file():
            raise ProblemError(f"{path} has no answer: {answer.name} is missing")
        tests.append(Test(_text(path), _text(answer)))
    if not tests:
        raise ProblemError(f"{folder} has no tests: add pairs of files NAME.in and NAME.ans")
    return Problem(identifier, "", tuple(tests), time_limit, memory_limit, checker)


def read_source(path: str | Path) -> tuple[str, str]:
    """Source and language of a program file. Raises `ProblemError` for an unknown file name ending."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ProblemError(f"{path}: the language of '{path.suffix}' files is unknown; known are {', '.join(SUFFIXES)}")
    return path.read_text(encoding="utf-8", errors="replace"), SUFFIXES[path.suffix]


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")
