"""Countdown: rows `{nums, target}`, a generator that needs no data set, and a solver.

Generated problems have 3 or 4 numbers from 1 to 99 and a target from 10 to 100, as in Countdown-Tasks-3to4, and every
one has a solution. A hash of target and numbers decides whether a problem is one to train on or held out, so the two
never meet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import combinations
from random import Random
from typing import Any, Literal

from data.purposes import purpose_of
from data.sources.base import Loaded, Record, Skip, Source
from rewards.problem import Problem

LOWEST_TARGET, HIGHEST_TARGET = 10, 100
HIGHEST_NUMBER = 99
HELD_OUT_ONE_IN = 8
Number = Any  # int, or Fraction where divisions need not come out even
MAX_NUMBERS = 6  # the solver's cost grows more than tenfold with each


def convert(record: Record) -> Loaded:
    numbers, target = record.get("nums"), record.get("target")
    if not isinstance(numbers, list | tuple) or not numbers or not all(isinstance(n, int) for n in numbers):
        raise Skip("field 'nums' is not a list of integers")
    if not isinstance(target, int) or isinstance(target, bool):
        raise Skip("field 'target' is not an integer")
    if len(numbers) > MAX_NUMBERS or min(numbers) < 0:
        raise Skip(f"more than {MAX_NUMBERS} numbers, or a negative one")
    expression = solve(numbers, target)
    if expression is None:
        raise Skip("has no solution")
    return Loaded(make_problem(numbers, target, expression))


def make_problem(numbers: Sequence[int], target: int, expression: str) -> Problem:
    return Problem(
        id=f"countdown/{target}-{'-'.join(map(str, sorted(numbers)))}",
        statement=f"Using the numbers {', '.join(map(str, numbers))}, make an equation that equals {target}.",
        language="",
        source="countdown",
        difficulty=str(len(numbers)),
        answer=str(target),
        numbers=tuple(numbers),
        solution=f"{expression} = {target}",
    )


def generate(
    split: Literal["train", "held_out"], count: int, seed: int, purpose: str | None = None
) -> list[Problem]:
    """`count` distinct solvable problems of the split. The same arguments give the same problems. purpose: of held-out
    problems (`data/purposes.py`); None for those of all purposes."""
    rng = Random(f"countdown/{split}/{seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        numbers = [rng.randint(1, HIGHEST_NUMBER) for _ in range(rng.choice((3, 4)))]
        made = _random_expression(numbers, rng)
        if made is None:
            continue
        problem = make_problem(numbers, *made)
        digest = hashlib.sha256(problem.id.encode()).digest()
        if is_held_out(problem.id) == (split == "held_out") and purpose in (None, purpose_of(digest[1])):
            found.setdefault(problem.id, problem)
    return list(found.values())


def is_held_out(identifier: str) -> bool:
    """Whether the problem of this id (target and sorted numbers) belongs to the held-out part."""
    return hashlib.sha256(identifier.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def _random_expression(numbers: Sequence[int], rng: Random) -> tuple[int, str] | None:
    """A target in the range and an expression for it, by joining the numbers at random; None if that fails."""
    parts = [(number, str(number)) for number in numbers]
    while len(parts) > 1:
        (a, left), (b, right) = rng.sample(parts, 2)
        for part in ((a, left), (b, right)):
            parts.remove(part)
        options = [(a + b, "+"), (a * b, "*")]
        options += [(a - b, "-")] if a > b else []
        options += [(a // b, "/")] if b > 1 and a % b == 0 else []
        value, sign = rng.choice(options)
        parts.append((value, f"({left} {sign} {right})"))
    value, expression = parts[0]
    return (value, expression[1:-1]) if LOWEST_TARGET <= value <= HIGHEST_TARGET else None


def solve(numbers: Sequence[int], target: int) -> str | None:
    """An expression that uses every number once and equals the target, or None when there is none.

    Complete search over subsets, in exact arithmetic: first without fractions, which is fast and mostly enough.
    """
    if not numbers:
        return None
    for exact_division in (True, False):
        expression = _reach(numbers, target, exact_division)
        if expression is not None:
            return expression
    return None


def _reach(numbers: Sequence[int], target: int, exact_division: bool) -> str | None:
    kind = int if exact_division else Fraction
    reached: dict[int, dict[Number, str]] = {1 << i: {kind(n): str(n)} for i, n in enumerate(numbers)}
    everything = (1 << len(numbers)) - 1
    if len(numbers) == 1:
        return reached[everything].get(target)
    for size in range(2, len(numbers)):
        for chosen in combinations(range(len(numbers)), size):
            values: dict[Number, str] = {}
            for one, other in _halves(sum(1 << i for i in chosen)):
                for a, left in reached[one].items():
                    for b, right in reached[other].items():
                        for value, sign, first, second in _results(a, left, b, right, exact_division):
                            values.setdefault(value, f"({first} {sign} {second})")
            reached[sum(1 << i for i in chosen)] = values
    for one, other in _halves(everything):  # the last step looks for the number that is missing instead of trying all
        for a, left in reached[one].items():
            for b in _partners(kind(target), a, exact_division) if target else reached[other]:
                if (found := reached[other].get(b)) is not None:
                    for value, sign, first, second in _results(a, left, b, found, exact_division):
                        if value == target:
                            return f"{first} {sign} {second}"
    return None


def _halves(mask: int) -> Iterable[tuple[int, int]]:
    """Every way to part the set bits of a mask in two, once."""
    part = (mask - 1) & mask
    while part > mask ^ part:
        yield part, mask ^ part
        part = (part - 1) & mask


def _partners(target: Number, a: Number, exact_division: bool) -> Iterable[Number]:
    """Every b for which a + b, a * b, a - b, b - a, a / b or b / a can be the target, which is not 0."""
    yield target - a
    yield a - target
    yield a + target
    yield a * target
    for over, under in ((target, a), (a, target)):
        if under and not exact_division:
            yield over / under
        elif under and over % under == 0:
            yield over // under


def _results(
    a: Number, left: str, b: Number, right: str, exact_division: bool
) -> Iterable[tuple[Number, str, str, str]]:
    yield a + b, "+", left, right
    yield a * b, "*", left, right
    yield a - b, "-", left, right
    yield b - a, "-", right, left
    for over, under, first, second in ((a, b, left, right), (b, a, right, left)):
        if under == 0:
            continue
        if not exact_division:
            yield over / under, "/", first, second  # Fractions
        elif over % under == 0:
            yield over // under, "/", first, second


SOURCE = Source("countdown", convert, hub="Jiayi-Pan/Countdown-Tasks-3to4", generate=generate)
