"""Problems about one list of integers read in order: sums, counts, positions, neighbours."""

from __future__ import annotations

from random import Random

from data.starter.families.vocabulary import (
    ARRAY_BOUNDS,
    HUGE,
    array_cases,
    compare,
    comparison,
    number_test,
    passes,
)
from data.starter.family import Family, Params
from data.starter.layouts import Array

ANY = Array(ARRAY_BOUNDS)

conditional_sum = Family(
    name="conditional_sum",
    stories=(
        "Add up those of the given $things that are $which, starting from $c.",
        "$who has $c coins and receives every number of the list that is $which; the others are ignored.",
        "Given $things, find $c plus the sum of all that are $which.",
        "From a list of $things keep only the ones $which. Print their sum increased by $c.",
    ),
    result="the sum",
    layout=ANY,
    draw=lambda rng: number_test(rng, -9, 30) | {"c": rng.randint(0, 30)},
    cases=lambda rng, p: array_cases(rng, special=[[p["t"]] * 5]),
    solve=lambda p, a: p["c"] + sum(x for x in a if passes(p, x)),
    sketch="""
in n;
num sum = {{$c ~init $c + 1}};
for i {{0 ~off 1}} {{n ~edge n - n / 9 - 1}} {
    in x;
    if ({{$cond ~swap $anti}}) sum += x;
}
out sum;
""",
)

conditional_count = Family(
    name="conditional_count",
    stories=(
        "How many of the given $things are $which? Every such one scores $c points.",
        "$who gets $c coins for each of the $things that is $which.",
        "Count the $things that are $which and multiply the count by $c.",
        "Each number of the list that is $which is worth $c points, others are worth nothing.",
    ),
    result="the total",
    layout=ANY,
    draw=lambda rng: number_test(rng, -9, 30) | {"c": rng.randint(2, 60)},
    cases=lambda rng, p: array_cases(rng, special=[[p["t"], p["t"] + 1] * 6]),
    solve=lambda p, a: p["c"] * sum(passes(p, x) for x in a),
    sketch="""
in n;
num cnt = {{0 ~init 1}};
for i {{0 ~off 1}} {{n ~edge n - n / 9 - 1}} {
    in x;
    if ({{$cond ~swap $anti ~off $cond && i < n - 1}}) cnt++;
}
out cnt * $c;
""",
)


def _draw_extreme(rng: Random) -> Params:
    big = rng.random() < 0.5
    verb, op = rng.choice((("add", "+"), ("subtract", "-"), ("multiply by", "*")))
    return {"word": rng.choice(("largest", "maximum") if big else ("smallest", "minimum")), "op": ">" if big else "<",
            "swapped": "<" if big else ">", "bad": 0 if big else -1, "verb": verb, "apply": op, "k": rng.randint(2, 90)}


def _apply(op: str, x: int, k: int) -> int:
    return {"+": x + k, "-": x - k, "*": x * k}[op]


extreme = Family(
    name="extreme",
    stories=(
        "Find the $word of the given $things, then $verb $k.",
        "$who looks for the $word number of a list. Take it and $verb $k.",
        "Which of the $things is the $word? Before printing, $verb $k.",
        "Read $things; take the $word one and $verb $k.",
    ),
    result="the result",
    layout=ANY,
    draw=_draw_extreme,
    cases=lambda rng, p: [
        ([x if p["op"] == ">" else -x for x in a],)
        for (a,) in array_cases(rng, special=[[-5, -9, -3 * 10**9], [-(10**11) - i for i in range(9)]])
    ],
    solve=lambda p, a: _apply(p["apply"], max(a) if p["op"] == ">" else min(a), p["k"]),
    sketch="""
array a[n];
num best = {{a[0] ~init 0 ~off 1 ~edge a[n / 2]}};
for i {{0 ~off 2 ~edge n/2}} n {
    if (a[i] {{$op ~swap $swapped}} best) best = a[i];
}
out best $apply $k;
""",
)

spread_of_values = Family(
    name="spread_of_values",
    stories=(
        "Find the difference between the largest and the smallest of the $things, multiplied by $k, plus $c.",
        "$who pays $k coins per unit between the minimum and the maximum of the list, and $c coins on top.",
        "The range of a list is its maximum minus its minimum. Print $k times the range plus $c.",
        "Take the gap between the highest and the lowest of the $things. Multiply by $k and add $c.",
    ),
    result="the result",
    layout=ANY,
    draw=lambda rng: {"k": rng.randint(2, 90), "c": rng.randint(1, 90)},
    cases=lambda rng, p: array_cases(rng, special=[[8, 5, 9, 7], [10**12, 10**12 - 7]]),
    solve=lambda p, a: p["k"] * (max(a) - min(a)) + p["c"],
    sketch="""
array a[n];
num low = {{a[0] ~init 0}}, high = {{a[0] ~init 0}};
for i {{1 ~off 2}} {{n ~edge n / 2}} {
    if (a[i] {{< ~swap >}} low) low = a[i];
    if (a[i] {{> ~swap <}} high) high = a[i];
}
out (high - low) * $k + $c;
""",
)


def _draw_weighted(rng: Random) -> Params:
    start, step = rng.sample(range(2, 40), 2)
    return {"s": start, "d": step}


weighted_sum = Family(
    name="weighted_sum",
    stories=(
        "The weight of the first number is $s; each next weight is larger by $d. Find the weighted sum of the list.",
        "Multiply the first of the $things by $s, the second by $s + $d, the third by $s + 2 * $d and so on; add up.",
        "$who sells the first item $s times, and every following item $d times more than the one before. Sum up.",
        "Number the positions $s, $s + $d, $s + 2 * $d, ... and add position times value.",
    ),
    result="the sum",
    layout=ANY,
    draw=_draw_weighted,
    cases=lambda rng, p: array_cases(rng),
    solve=lambda p, a: sum((p["s"] + p["d"] * i) * x for i, x in enumerate(a)),
    sketch="""
in n;
num sum = {{0 ~init $s}}, w = {{$s ~edge $d ~swap $d}};
for i 0 {{n ~off n - 1}} {
    in x;
    sum += w * x;
    w += {{$d ~swap $s ~edge 1}};
}
out sum;
""",
)


def _draw_gap(rng: Random) -> Params:
    goal = rng.choice(("largest", "total"))
    update = "if (d > best) best = d;" if goal == "largest" else "best += d;"
    wrong = "if (d < best) best = d;" if goal == "largest" else "best -= d;"
    return {"goal": goal, "update": update, "wrong": wrong, "k": rng.randint(2, 40), "c": rng.randint(1, 60)}


def _solve_gap(p: Params, a: list[int]) -> int:
    gaps = [abs(x - y) for x, y in zip(a, a[1:], strict=False)]
    return p["k"] * (max(gaps) if p["goal"] == "largest" else sum(gaps)) + p["c"]


neighbour_gap = Family(
    name="neighbour_gap",
    stories=(
        "Take the absolute differences of neighbouring $things. Print $k times the $goal difference, plus $c.",
        "$who walks along the list; a step between neighbours x and y is |x - y| long. "
        "Multiply the $goal step length by $k and add $c.",
        "For each pair of adjacent numbers compute how far apart they are. Scale the $goal gap by $k, then add $c.",
        "Find the $goal of |a[i] - a[i-1]| over the list, times $k, plus $c.",
    ),
    result="the result",
    layout=Array(ARRAY_BOUNDS, least=2),
    draw=_draw_gap,
    cases=lambda rng, p: array_cases(rng, least=2, special=[[1, 2 * 10**11], [9, 8, 7, -(10**12)]]),
    solve=_solve_gap,
    sketch="""
array a[n];
num best = {{0 ~init 7}};
for i 1 {{n ~off n - 1}} {
    num d = a[i] - a[i - 1];
    if (d < 0) d = {{-d ~edge 0}};
    {{$update ~swap $wrong}}
}
out best * $k + $c;
""",
)

best_segment = Family(
    name="best_segment",
    stories=(
        "Every number of the list is first $change by $k. Find the largest sum of a non-empty contiguous segment.",
        "$who picks consecutive $things, at least one; each picked one is $change by $k. How much can the sum be?",
        "Find the greatest total of one or more neighbouring $things after each has been $change by $k.",
        "All numbers are $change by $k. What is the maximal sum over non-empty blocks of adjacent numbers?",
    ),
    result="the largest sum",
    layout=ANY,
    draw=lambda rng: {"k": rng.randint(1, 200)}
    | dict(zip(("change", "op"), rng.choice((("increased", "+"), ("decreased", "-"))), strict=True)),
    cases=lambda rng, p: array_cases(rng, small=60, special=[[-200, -300, -150], [-9 * 10**11] * 3, [70, -900, 80]]),
    solve=lambda p, a: _best_segment([x + p["k"] if p["op"] == "+" else x - p["k"] for x in a]),
    sketch="""
in n;
num cur = 0, best = {{-4e18 ~init 0}};
for i {{0 ~off 1}} n {
    in x;
    x = x $op $k;
    if (cur {{> ~swap <}} 0) cur += x;
    else cur = {{x ~edge 0}};
    if (cur {{> ~swap >=}} best) best = cur;
}
out best;
""",
)


def _best_segment(a: list[int]) -> int:
    best = current = a[0]
    for x in a[1:]:
        current = max(current, 0) + x
        best = max(best, current)
    return best


def _solve_reach(p: Params, a: list[int]) -> int:
    total = p["c"]
    for position, x in enumerate(a, 1):
        total += x
        if compare(p, total, p["k"]):
            return position
    return -1


reach = Family(
    name="reach",
    stories=(
        "Start with $c and add the $things one by one. After which one is the sum $compared $k for the first time?",
        "$who owns $c coins; the list holds the gains day by day. Find the first day with a balance $compared $k.",
        "Running total: begin at $c, add each number in turn. Give the first position where it is $compared $k.",
        "A tank holds $c litres and changes by the given $things. When is its content first $compared $k?",
    ),
    result="the position (counted from 1), or -1 if there is none",
    layout=ANY,
    draw=lambda rng: comparison(rng) | {"c": rng.randint(0, 30), "k": rng.randint(-30, 60)},
    cases=lambda rng, p: _reach_cases(rng, p),
    solve=_solve_reach,
    sketch="""
in n;
num sum = {{$c ~init 0}}, ans = {{-1 ~edge 0}};
for i 0 {{n ~edge n / 2}} {
    in x;
    sum += x;
    if (sum {{$op ~swap $swapped}} $k && ans < 0) ans = {{i + 1 ~off i}};
}
out ans;
""",
)


def _reach_cases(rng: Random, p: Params) -> list[tuple[list[int]]]:
    """Lists that stay on the wrong side of the limit for a while, then cross it (or never do)."""
    up = 1 if p["op"][0] == ">" else -1
    gap = p["k"] - p["c"]

    def crossing(length: int, where: int, size: int) -> tuple[list[int]]:
        steps = [-up * rng.randint(1, size) for _ in range(length)]
        steps[0] += gap - up * size
        if where < length:
            steps[where] = gap - sum(steps[:where]) + up * rng.randint(1, size)
        return (steps,)

    def somewhere(length: int, size: int) -> tuple[list[int]]:
        return crossing(length, rng.randrange(length // 2, length), size)

    far = HUGE // 50
    return [somewhere(4, 5), somewhere(5, 9), crossing(1, 5, 9), crossing(20, 30, far), somewhere(30, far),
            somewhere(12, far), crossing(25, rng.randint(2, 9), 9), crossing(35, 34, 50), somewhere(16, far)]


def _solve_streak(p: Params, a: list[int]) -> int:
    best = current = 0
    for x in a:
        current = current + 1 if passes(p, x) else 0
        best = max(best, current)
    return best * p["c"]


longest_streak = Family(
    name="longest_streak",
    stories=(
        "Find the longest run of consecutive $things that are all $which. Multiply its length by $c.",
        "A day is good if its number is $which. $who wins $c coins per day of the longest series of good days.",
        "How long is the longest contiguous block of numbers that are $which? Print the length times $c.",
        "A streak is a block of neighbouring $things that are $which. Print $c times the length of the longest one.",
    ),
    result="the result",
    layout=ANY,
    draw=lambda rng: number_test(rng, -9, 9) | {"c": rng.randint(1, 60)},
    cases=lambda rng, p: _streak_cases(rng, p),
    solve=_solve_streak,
    sketch="""
in n;
num cur = 0, best = {{0 ~init 1}};
for i {{0 ~off 1}} n {
    in x;
    if ({{$cond ~swap $anti}}) cur++;
    else {{cur = 0; ~edge cur--;}}
    if (cur {{> ~swap <}} best) best = cur;
}
out best * $c;
""",
)


def _streak_cases(rng: Random, p: Params) -> list[tuple[list[int]]]:
    def like(good: bool, size: int) -> int:
        while True:
            x = rng.randint(-size, size)
            if passes(p, x) == good:
                return x

    def runs(size: int, *lengths: int) -> list[int]:
        values: list[int] = []
        for length in lengths:
            values += [like(True, size) for _ in range(length)] + [like(False, size)]
        return values[:-1] if rng.random() < 0.6 else values

    special = [runs(50, 3, 2, 5), runs(HUGE, 9, 4, 2), runs(HUGE, 2, 3, 8), runs(HUGE, 6, 6, 7, 1)]
    special += [[like(False, 99)] * 3, [like(True, HUGE) for _ in range(12)]]
    plain = array_cases(rng)
    return [(runs(20, 1, 2),), *plain[1:4], *((values,) for values in special)]


FAMILIES = (
    conditional_sum, conditional_count, extreme, spread_of_values, weighted_sum, neighbour_gap, best_segment, reach,
    longest_streak,
)  # fmt: skip
