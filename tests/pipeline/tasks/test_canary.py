"""Known-right solutions are graded before a run; a judge that refuses them ends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data.starter.generator import problems
from pipeline.config import ConfigError
from pipeline.tasks.canary import SAMPLE, Canary
from pipeline.tasks.code import TASK as CODE
from pipeline.tasks.countdown import TASK as COUNTDOWN
from pipeline.tasks.gsm8k import TASK as GSM8K
from rewards.grader.pool import GraderPool
from rewards.problem import Problem

RIGHT = problems("held_out", 24, 0)


def test_right_solutions_pass() -> None:
    with GraderPool(2, quiet=True) as pool:
        assert Canary(pool, CODE, RIGHT).check(required=True) == {"graded": SAMPLE, "accepted": SAMPLE}
        without = [replace(problem, solution="") for problem in RIGHT[:3]]
        assert Canary(pool, CODE, without).check(required=True) == {"graded": 0, "accepted": 0}


def test_a_judge_that_refuses_them_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    broken = [replace(p, solution=p.solution.replace("main", "mian")) if i % 4 == 0 else p for i, p in enumerate(RIGHT)]
    with GraderPool(2, quiet=True) as pool:
        with pytest.raises(ConfigError, match=r"only 1\d of 16 .* first .*COMPILE_ERROR, .*undefined .*--no-canary"):
            Canary(pool, CODE, broken).check(required=True)
        result = Canary(pool, CODE, broken).check(required=False)
    assert result["accepted"] < 15 and result["first_failure"]["verdict"] == "COMPILE_ERROR"
    assert "warning: only" in capsys.readouterr().out


def test_one_wrong_solution_of_many_is_only_kept() -> None:
    broken = [replace(problem, solution="int main() {}") if i == 0 else problem for i, problem in enumerate(RIGHT[:16])]
    with GraderPool(2, quiet=True) as pool:
        result = Canary(pool, CODE, broken).check(required=True)
    assert result["accepted"] == 15 and result["first_failure"]["problem"] == RIGHT[0].id


def test_tasks_that_run_no_programs_have_one_too() -> None:
    sum_of = Problem("g", "How much?", answer="12", solution="7 + 5 = 12")
    assert Canary(None, GSM8K, [sum_of]).check(required=True) == {"graded": 1, "accepted": 1}
    target = Problem("c", "", numbers=(3, 4), answer="12", solution="3 * 4 = 12")
    assert Canary(None, COUNTDOWN, [target]).check(required=True)["graded"] == 1


def test_nine_of_ten_are_enough() -> None:
    right = [Problem(f"c{i}", "", numbers=(3, 4), answer="12", solution="3 * 4 = 12") for i in range(9)]
    wrong = replace(right[0], id="wrong", solution="3 + 4 = 12")
    assert Canary(None, COUNTDOWN, [*right, wrong]).check(required=True)["accepted"] == 9
    with pytest.raises(ConfigError, match="only 8 of 10"):
        Canary(None, COUNTDOWN, [*right[1:], wrong, wrong]).check(required=True)
