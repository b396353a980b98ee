"""Real problems: own solutions in `kattis/<id>.cpp` are accepted, their wrong variants `<id>.wrong.cpp` are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.problems import read_problems
from rewards.grader.pool import GraderPool
from rewards.problem import Problem
from rewards.verdict import Status

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "kattis" / "problems.jsonl"
SOLUTIONS = Path(__file__).with_name("kattis")
NAMES = sorted(path.stem for path in SOLUTIONS.glob("*.cpp") if not path.stem.endswith(".wrong"))

pytestmark = pytest.mark.skipif(not DATA.is_file(), reason=f"the test data {DATA} is not here")


@pytest.fixture(scope="module")
def problems() -> dict[str, Problem]:
    # no solution here needs a tenth of this time limit
    return {problem.id: replace(problem, time_limit=0.4) for problem in read_problems(DATA)}


def test_all_problems_load(problems: dict[str, Problem]) -> None:
    assert len(problems) == 148
    for problem in problems.values():
        assert problem.tests and problem.samples, problem.id
        assert problem.checker.type in ("caseless", "float"), problem.id


@pytest.mark.integration
def test_solutions_are_judged_right(pool: GraderPool, problems: dict[str, Problem]) -> None:
    assert len(NAMES) >= 10
    futures = {
        name: pool.submit((SOLUTIONS / f"{name}.cpp").read_text(), problems[f"kattis-{name.removesuffix('.wrong')}"])
        for right in NAMES
        for name in (right, f"{right}.wrong")
    }
    verdicts = {name: future.result() for name, future in futures.items()}
    for name in NAMES:
        assert verdicts[name].status is Status.ACCEPTED, (name, verdicts[name].diagnostics)
        wrong = verdicts[f"{name}.wrong"]
        assert wrong.compiled and wrong.status in (Status.WRONG_ANSWER, Status.TIME_LIMIT), (name, wrong.diagnostics)
        assert wrong.passed < wrong.total, (name, wrong.passed)
