"""What families share: comparisons, tests of a number, makers of test cases with samples, edges and large values."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

HUGE = 10**12  # far outside 32 bits, while sums and small products stay inside 64
ARRAY_BOUNDS = "each from -10^12 to 10^12"

# words: (C++ operator, the operator a careless author writes instead)
COMPARISONS = {"greater than": (">", "<"), "less than": ("<", ">"), "at least": (">=", "<="), "at most": ("<=", ">=")}
_COMPARE = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


def comparison(rng: Random) -> dict[str, Any]:
    """Parameters `compared` (words), `op` and `swapped` (C++)."""
    words = rng.choice(list(COMPARISONS))
    op, swapped = COMPARISONS[words]
    return {"compared": words, "op": op, "swapped": swapped}


def compare(params: dict[str, Any], left: int, right: int) -> bool:
    return _COMPARE[params["op"]](left, right)


def number_test(rng: Random, low: int, high: int) -> dict[str, Any]:
    """Parameters of a yes/no question about a number `x`: `which` in words, `cond` and its opposite `anti` in C++.

    The constant `t` lies in [low, high]; for divisibility it is brought into 2..12.
    """
    kind = rng.choice((*COMPARISONS, "divisible by", "not divisible by"))
    if kind in COMPARISONS:
        t = rng.randint(low, high)
        op, swapped = COMPARISONS[kind]
        return {"which": f"{kind} {t}", "cond": f"x {op} {t}", "anti": f"x {swapped} {t}", "op": op, "t": t}
    t = rng.randint(2, 12)
    op, swapped = ("==", "!=") if kind == "divisible by" else ("!=", "==")
    return {"which": f"{kind} {t}", "cond": f"x % {t} {op} 0", "anti": f"x % {t} {swapped} 0", "op": op, "t": t}


def passes(params: dict[str, Any], x: int) -> bool:
    """The answer of a `number_test`."""
    op, t = params["op"], params["t"]
    if op in _COMPARE:
        return _COMPARE[op](x, t)
    return (x % t == 0) == (op == "==")


def spread(rng: Random, low: int, high: int) -> int:
    """A number of [low, high] whose magnitude is spread over all sizes."""
    limit = max(abs(low), abs(high))
    value = int(10 ** rng.uniform(0, len(str(limit)))) % (limit + 1)
    value = -value if low < 0 and rng.random() < 0.5 else value
    return min(max(value, low), high)


def scalar_cases(
    rng: Random, *ranges: tuple[int, int], small: int = 20, special: Iterable[Sequence[int]] = (), hidden: int = 7
) -> list[tuple[int, ...]]:
    """Two small samples, the special cases, all-largest, then numbers of every size."""
    cases: list[tuple[int, ...]] = []
    for _ in range(2):
        cases.append(tuple(rng.randint(max(low, -small), min(high, max(low, 0) + small)) for low, high in ranges))
    cases += [tuple(case) for case in special]
    cases.append(tuple(high - rng.randint(0, max(0, (high - low) // 100)) for low, high in ranges))
    while len(cases) < 2 + hidden:
        big = len(cases) % 2
        cases.append(
            tuple(rng.randint((low + high) // 2, high) if big else spread(rng, low, high) for low, high in ranges)
        )
    return cases


def array_cases(
    rng: Random,
    low: int = -HUGE,
    high: int = HUGE,
    least: int = 1,
    small: int = 20,
    special: Iterable[Sequence[int]] = (),
) -> list[tuple[list[int]]]:
    """Two small samples, then: shortest, all negative (or small), all equal, huge, mixed, medium, and the special ones.

    `small` is the size of numbers near which the family's constants lie.
    """

    def near() -> int:
        return min(max(rng.randint(-small, small), low), high)

    def far() -> int:
        return rng.randint(low, high)

    def many(maker, fewest: int, most: int) -> list[int]:
        return [maker() for _ in range(rng.randint(max(least, fewest), max(least, most)))]

    equal = rng.randint(max(low, high // 2), high)
    arrays = [
        many(near, 4, 6),
        many(near, 3, 6),
        [far() for _ in range(least)],
        many(lambda: max(low, -rng.randint(1, 3 * small)) if low < 0 else near(), 5, 9),
        [equal] * max(least, rng.randint(3, 8)),
        many(lambda: rng.randint(high // 2, high), 30, 40),
        many(lambda: rng.choice((near, far))(), 25, 40),
        many(lambda: rng.choice((near, near, far))(), 8, 15),
        many(near, 20, 30),
    ]
    return [(array,) for array in [*arrays, *map(list, special)]]
