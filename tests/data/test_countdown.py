"""Generated Countdown problems: solvable, in range, repeatable, never in both parts; and the solver is complete."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources.countdown import generate, is_held_out, solve
from rewards.countdown import is_solution


def test_generated_problems() -> None:
    train, held_out = generate("train", 300, 5), generate("held_out", 100, 6)
    assert train == generate("train", 300, 5) != generate("train", 300, 6)
    assert generate("train", 50, 5) == train[:50]
    assert not {p.id for p in train} & {p.id for p in held_out}
    for problem in train + held_out:
        assert is_solution(problem.solution, problem.numbers, problem.answer)
        assert len(problem.numbers) in (3, 4) and all(1 <= n <= 99 for n in problem.numbers)
        assert 10 <= int(problem.answer) <= 100
        assert is_held_out(problem.id) == (problem in held_out)
    assert {len(p.numbers) for p in train} == {3, 4}


def can_reach(values: list[Fraction], target: int) -> bool:
    if len(values) == 1:
        return values[0] == target
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            if i == j:
                continue
            rest = [value for k, value in enumerate(values) if k not in (i, j)]
            results = [a + b, a - b, a * b] + ([a / b] if b else [])
            if any(can_reach([*rest, result], target) for result in results):
                return True
    return False


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=3), st.integers(0, 20))
def test_the_solver_finds_whatever_there_is(numbers: list[int], target: int) -> None:
    found = solve(numbers, target)
    assert (found is not None) == can_reach([Fraction(n) for n in numbers], target)
    assert found is None or is_solution(found, numbers, target)


def test_a_solution_that_needs_fractions() -> None:
    assert is_solution(solve([3, 3, 8, 8], 24) or "", [3, 3, 8, 8], 24)
