"""Problems as JSON lines: one `rewards.problem.Problem` a line, validated on reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rewards.files import json_lines
from rewards.problem import Problem, ProblemError, problem_from_record
from storage.errors import UserError
from storage.files import write_json_lines


class DatasetError(UserError, ValueError):
    """A dataset file that cannot be used; the message names the file, the line and the reason."""


@contextmanager
def dataset_errors() -> Iterator[None]:
    """Turns a `ProblemError` about a file into a `DatasetError`."""
    try:
        yield
    except ProblemError as error:
        raise DatasetError(f"dataset {error}") from None


def read_problems(path: str | Path) -> list[Problem]:
    """All problems of a JSON-lines file. Blank lines are skipped.

    Raises `DatasetError` when the file is missing, holds no problem, repeats an id, or has a bad line.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"dataset {path}: no such file")
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    with path.open("rb") as file, dataset_errors():
        for number, record in json_lines(file, path):
            try:
                problem = problem_from_record(record)
            except ProblemError as error:
                raise DatasetError(f"dataset {path}, line {number}: {error}") from None
            if problem.id in seen:
                raise DatasetError(
                    f"dataset {path}, line {number}: id {problem.id!r} is already on line {seen[problem.id]}"
                )
            seen[problem.id] = number
            problems.append(problem)
    if not problems:
        raise DatasetError(f"dataset {path}: the file contains no problems")
    return problems


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write problems as JSON lines; the file appears whole or not at all."""
    write_json_lines(Path(path), (problem.to_record() for problem in problems))
