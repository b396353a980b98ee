"""Morgan Stanley's problems in Q (Apache-2.0): rows of the hub, or a folder for each problem as in the published
repository.

A test is code that is run behind the program, and what it must print.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.sources.base import Loaded, Record, Skip, Source, decoded, optional, text
from rewards.problem import Problem, Test

TIME_LIMIT = 1.0


def convert(record: Record) -> Loaded:
    cases = decoded(record.get("test_cases") or [], "test_cases")
    tests = tuple(
        Test(case["q_test_code"], _expected(case["q_expected_output"]))
        for case in cases
        if case.get("q_test_code") and case.get("q_expected_output") is not None
    )
    if not tests:
        raise Skip("no tests in Q")
    solution = optional(record, "q_solution")
    problem = Problem(
        id=f"q/{record.get('problem_name') or text(record, 'problem_id')}",
        statement=text(record, "problem_description").strip(),
        tests=tests,
        time_limit=TIME_LIMIT,
        language="q",
        source="q",
        difficulty=optional(record, "difficulty"),
        solution=solution,
        tests_are_code=True,
        license="Apache-2.0",
    )
    return Loaded(problem, (("q", solution),) if solution else ())


def _expected(output: Any) -> str:
    """`""` is how Q writes the empty text, for which a program may as well print nothing."""
    written = str(output).strip()
    return "" if written == '""' else written


def read_folders(folder: Path) -> Iterator[tuple[str, Record]]:
    """Folders with problem_description.txt, q_test_case_N.q and q_exact_ans_test_case_N.txt, at any depth."""
    for description in sorted(folder.rglob("problem_description.txt")):
        place = description.parent
        cases = []
        for code in sorted(place.glob("q_test_case_*.q"), key=lambda path: (len(path.name), path.name)):
            answer = place / f"q_exact_ans_test_case_{code.stem.removeprefix('q_test_case_')}.txt"
            if answer.is_file():
                cases.append({"q_test_code": code.read_text(), "q_expected_output": answer.read_text()})
        record: dict[str, Any] = {
            "problem_name": place.name,
            "problem_description": description.read_text(encoding="utf-8"),
            "test_cases": cases,
        }
        if (place / "q_sol.q").is_file():
            record["q_solution"] = (place / "q_sol.q").read_text(encoding="utf-8")
        if (place / "entry.json").is_file():
            record["difficulty"] = json.loads((place / "entry.json").read_text(encoding="utf-8")).get("difficulty")
        yield str(place), record


SOURCE = Source("q", convert, hub="morganstanley/sft-python-q-problems", read_folder=read_folders)
