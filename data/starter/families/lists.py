"""Problems about lists as a whole: products, windows, strides, order, pairs, lists to print, several columns."""

from __future__ import annotations

from random import Random

from data.starter.families.vocabulary import ARRAY_BOUNDS, HUGE, array_cases, number_test, passes
from data.starter.family import Family, Params
from data.starter.layouts import Array, Rows

ANY = Array(ARRAY_BOUNDS)

product_mod = Family(
    name="product_mod",
    stories=(
        "Multiply all the $things together and by $c. Print the remainder modulo $m.",
        "$who starts with $c and multiplies by each number in turn. What is left after division by $m?",
        "Find $c times the product of the list, modulo $m.",
        "A code is $c times the product of all $things, taken modulo $m.",
    ),
    result="the remainder",
    layout=Array("each from 0 to 10^12"),
    draw=lambda rng: {"m": rng.randint(10**5, 10**6) * 10 + rng.choice((1, 3, 7, 9)), "c": rng.randint(2, 60)},
    cases=lambda rng, p: array_cases(rng, low=1, small=9, special=[[2] * 40, [10**12] * 3]),
    solve=lambda p, a: _product(a, p["m"], p["c"]),
    sketch="""
in n;
num r = {{$c ~init 1}};
for i {{0 ~off 1}} {{n ~edge n / 2 + 1}} {
    in x;
    r = r * {{(x % $m) ~swap (x / $m)}} % $m;
}
out r;
""",
)


def _product(values: list[int], modulus: int, start: int) -> int:
    for x in values:
        start = start * x % modulus
    return start


rises = Family(
    name="rises",
    stories=(
        "Count how often a number is $which the number just before it by at least $d. Each time gives $c points.",
        "$who notes a jump when one of the $things is $which the previous one by $d or more. Jumps cost $c coins each.",
        "A jump is a position where the value is $which its predecessor by at least $d. Print $c times their number.",
        "How many neighbours differ such that the later is $which the earlier by $d or more? Multiply by $c.",
    ),
    result="the total",
    layout=Array(ARRAY_BOUNDS, least=2),
    draw=lambda rng: {"d": rng.randint(1, 15), "c": rng.randint(2, 40)}
    | dict(
        zip(
            ("which", "change", "back"),
            rng.choice((("above", "x - last", "last - x"), ("below", "last - x", "x - last"))),
            strict=True,
        )
    ),
    cases=lambda rng, p: [
        *array_cases(rng, least=2),
        ([(i % 3 * p["d"] + i // 9) * 1 for i in range(30)],),
        ([0, p["d"], 0, p["d"], 3 * 10**9],),
    ],
    solve=lambda p, a: p["c"]
    * sum((y - x if p["which"] == "above" else x - y) >= p["d"] for x, y in zip(a, a[1:], strict=False)),
    sketch="""
in n, last;
num cnt = {{0 ~init 1}};
for i {{1 ~off 2}} n {
    in x;
    if ({{$change ~swap $back}} {{>= ~edge ==}} $d) cnt++;
    last = x;
}
out cnt * $c;
""",
)


def _draw_window(rng: Random) -> Params:
    big = rng.random() < 0.5
    return {"word": "largest" if big else "smallest", "op": ">" if big else "<", "swapped": "<" if big else ">",
            "k": rng.randint(2, 5), "c": rng.randint(1, 90), "bad": "0"}


def _solve_window(p: Params, a: list[int]) -> int:
    sums = [sum(a[i : i + p["k"]]) for i in range(len(a) - p["k"] + 1)]
    return (max(sums) if p["op"] == ">" else min(sums)) + p["c"]


window = Family(
    name="window",
    stories=(
        "Find the $word sum of $k consecutive $things, and add $c.",
        "$who takes $k neighbouring numbers with the $word possible sum. Add $c to that sum.",
        "Slide a window of length $k along the list. Print the $word window sum plus $c.",
        "Among all blocks of exactly $k adjacent $things, take the $word total and add $c.",
    ),
    result="the result",
    layout=Array(ARRAY_BOUNDS, least=5),
    draw=_draw_window,
    cases=lambda rng, p: [
        ([x if p["op"] == ">" else -x for x in a],)
        for (a,) in array_cases(rng, least=5, special=[[-9, -8, -7, -6, -5, -4], [-(10**10)] * 5 + [-7] * 5])
    ],
    solve=_solve_window,
    sketch="""
array a[n];
num best = 0;
for (int i = 0; i + $k <= {{n ~off n - 1}}; i++) {
    num sum = {{0 ~edge a[i]}};
    for (int j = i; j < i + $k; j++) sum += a[j];
    if ({{i == 0 || sum ~init sum}} {{$op ~swap $swapped}} best) best = sum;
}
out best + $c;
""",
)

_ORDINALS = {2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth"}


def _draw_stride(rng: Random) -> Params:
    k = rng.randint(2, 6)
    return {"k": k, "word": _ORDINALS[k], "s": rng.randint(1, 4), "c": rng.randint(1, 60)}


stride_sum = Family(
    name="stride_sum",
    stories=(
        "Positions count from 1. Begin at position $s and add every $word number from there; add $c at the end.",
        "$who collects the number at position $s (the first is 1) and every $word one after it, and owns $c already.",
        "Sum the $things at positions $s, $s + $k, $s + 2 * $k, ... (counted from 1), and add $c.",
        "Start with $c, go to position $s (positions start at 1) and take every $word of the $things.",
    ),
    result="the sum",
    layout=Array(ARRAY_BOUNDS, least=4),
    draw=_draw_stride,
    cases=lambda rng, p: array_cases(rng, least=4),
    solve=lambda p, a: p["c"] + sum(a[p["s"] - 1 :: p["k"]]),
    sketch="""
array a[n];
num sum = {{$c ~init 0}};
for (int i = {{$s - 1 ~off $s ~swap $k - 1}}; i < n; i += {{$k ~edge $k + 1 ~swap $s}}) {
    sum += a[i];
}
out sum;
""",
)

rotate = Family(
    name="rotate",
    stories=(
        "Move the first $k of the $things, in their order, to the end of the list, and add $c to every number.",
        "$who rotates the list to the left by $k places and increases each number by $c.",
        "Shift the list cyclically left by $k positions; each of the $things grows by $c.",
        "The first $k numbers go to the back of the queue (order kept). Print all numbers, each plus $c.",
    ),
    result="the new list on one line",
    layout=Array(ARRAY_BOUNDS, least=5),
    draw=lambda rng: {"k": rng.randint(1, 5), "c": rng.randint(1, 99)},
    cases=lambda rng, p: array_cases(rng, least=5),
    solve=lambda p, a: [x + p["c"] for x in a[p["k"] :] + a[: p["k"]]],
    sketch="""
array a[n];
for i {{0 ~off 1}} n {
    put a[(i + {{$k ~swap n - $k ~edge $k + 1}}) % n] + {{$c ~init 0}};
}
endl;
""",
)

filter_list = Family(
    name="filter_list",
    stories=(
        "Print those of the $things that are $which, in the given order, each multiplied by $c.",
        "$who keeps only numbers that are $which and multiplies each of them by $c.",
        "Drop every number that is not $which; print the others times $c.",
        "From the list choose the $things that are $which. Show $c times each of them.",
    ),
    result="the list on one line, or `-1` if it is empty",
    layout=ANY,
    draw=lambda rng: number_test(rng, -5, 9) | {"c": rng.randint(2, 60)},
    cases=lambda rng, p: [
        *array_cases(rng),
        ([next(x for x in range(-20, 40) if not passes(p, x))],),
        ([next(x for x in range(-20, 40) if not passes(p, x))] * 4,),
    ],
    solve=lambda p, a: [x * p["c"] for x in a if passes(p, x)] or -1,
    sketch="""
in n;
num cnt = {{0 ~init 1}};
for i 0 {{n ~off n - 1}} {
    in x;
    if ({{$cond ~swap $anti}}) {
        put x * $c;
        cnt++;
    }
}
if (cnt == {{0 ~edge -1}}) say "-1";
endl;
""",
)


def _draw_kth(rng: Random) -> Params:
    k = rng.randint(1, 4)
    word = ("", "second ", "third ", "fourth ")[k - 1]
    big = rng.random() < 0.5
    place, wrong = (f"n - {k}", str(k - 1)) if big else (str(k - 1), f"n - {k}")
    off = f"n - {k + 1}" if big else str(k)
    return {"k": k, "word": word + ("largest" if big else "smallest"), "place": place, "wrong": wrong, "off": off,
            "a": rng.randint(2, 60), "b": rng.randint(0, 90)}


kth_value = Family(
    name="kth_value",
    stories=(
        "Sort the $things (equal ones are all kept) and take the $word. Print $a times it plus $b.",
        "$who needs the $word of the $things, multiplied by $a and increased by $b.",
        "Find the $word number of the list; repeated numbers count separately. Multiply it by $a, add $b.",
        "The score is $a * v + $b, where v is the $word of the $things.",
    ),
    result="the result",
    layout=Array(ARRAY_BOUNDS, least=5),
    draw=_draw_kth,
    cases=lambda rng, p: array_cases(rng, least=5, special=[[3, 3, 3, 9, 9, 9, 10], [5, 4, 3, 2, 1, 0, -1]]),
    solve=lambda p, a: p["a"] * sorted(a)[p["k"] - 1 if "smallest" in p["word"] else -p["k"]] + p["b"],
    sketch="""
array a[n];
sort a, {{n ~edge n - 1}};
out a[{{$place ~off $off ~swap $wrong}}] * $a + {{$b ~init $b + 1}};
""",
)


def _draw_pairs(rng: Random) -> Params:
    kind = rng.choice(("sum", "difference"))
    return {"kind": kind, "op": "+" if kind == "sum" else "-"} | {"m": rng.randint(3, 30), "c": rng.randint(2, 30)}


def _solve_pairs(p: Params, a: list[int]) -> int:
    sign = 1 if p["op"] == "+" else -1
    return p["c"] * sum((a[i] + sign * a[j]) % p["m"] == 0 for i in range(len(a)) for j in range(i))


pair_count = Family(
    name="pair_count",
    stories=(
        "Count the pairs of positions i < j for which the $kind of the numbers is divisible by $m. "
        "Each pair gives $c points.",
        "$who earns $c coins for every pair of $things whose $kind is a multiple of $m.",
        "Two $things match when their $kind is divisible by $m. Print $c times the number of matching pairs.",
        "How many pairs have a $kind divisible by $m? Multiply the count by $c.",
    ),
    result="the total",
    layout=ANY,
    draw=_draw_pairs,
    cases=lambda rng, p: array_cases(
        rng, small=30, special=[[p["m"] * x for x in range(5)], [10**11 + p["m"] * (x // 2) for x in range(20)]]
    ),
    solve=_solve_pairs,
    sketch="""
array a[n];
num cnt = {{0 ~init 1}};
for i {{0 ~edge 1}} n {
    for (int j = {{i + 1 ~off i}}; j < n; j++) {
        if ((a[i] {{$op ~swap *}} a[j]) % $m == 0) cnt++;
    }
}
out cnt * $c;
""",
)


def _pairs(rng: Random, low: int, high: int, small: int = 9) -> list[tuple[list[tuple[int, int]]]]:
    def rows(count: int, lowest: int, highest: int) -> tuple[list[tuple[int, int]]]:
        return ([(rng.randint(lowest, highest), rng.randint(lowest, highest)) for _ in range(count)],)

    near_low, near_high = max(low, -small), min(high, small)
    return [rows(2, near_low, near_high), rows(3, near_low, near_high), rows(1, low, high), rows(40, low, high),
            rows(12, high // 2, high), rows(20, near_low, near_high), rows(6, low, high), rows(30, high // 3, high),
            rows(2, high // 2, high)]


orders = Family(
    name="orders",
    stories=(
        "Each order has an amount x and a price y and costs x * y coins. Orders with x $at_least $t get $d coins off. "
        "Find the total.",
        "$who buys x pieces at y coins each, several times. If x is $at_least $t, that purchase is $d coins cheaper.",
        "A farm sells x sacks for y coins a sack; a sale with x $at_least $t is reduced by $d. Sum over all sales.",
        "Add x * y over all rows, but subtract $d for every row in which x is $at_least $t.",
    ),
    result="the total",
    layout=Rows("two integers x and y (1 <= x, y <= 10^8)"),
    draw=lambda rng: {"t": rng.randint(2, 9), "d": rng.randint(1, 60)}
    | dict(
        zip(
            ("at_least", "op", "swapped"),
            rng.choice((("at least", ">=", "<="), ("more than", ">", "<"), ("less than", "<", ">"))),
            strict=True,
        )
    ),
    cases=lambda rng, p: _pairs(rng, 1, 10**8),
    solve=lambda p, rows: sum(
        x * y - (p["d"] if {">=": x >= p["t"], ">": x > p["t"], "<": x < p["t"]}[p["op"]] else 0) for x, y in rows
    ),
    sketch="""
in n;
num sum = {{0 ~init 1}};
for i {{0 ~off 1}} n {
    in x, y;
    sum += x * {{y ~edge (y - 1)}};
    if (x {{$op ~swap $swapped}} $t) sum -= $d;
}
out sum;
""",
)


def _solve_inner(p: Params, rows: list[tuple[int, int]]) -> int:
    return sum(p["a"] * x + p["b"] * y if p["join"] == "+" else p["a"] * x - p["b"] * y for x, y in rows)


two_columns = Family(
    name="two_columns",
    stories=(
        "Every row holds x and y and is worth $a * x $join $b * y. Add up all rows.",
        "$who scores $a * x $join $b * y points in a round with the numbers x and y. Find the score of all rounds.",
        "Sum $a * x $join $b * y over the given pairs.",
        "A trade with numbers x and y changes the account by $a * x $join $b * y. Find the change over all trades.",
    ),
    result="the sum",
    layout=Rows("two integers x and y (-10^12 <= x, y <= 10^12)"),
    draw=lambda rng: {"a": rng.randint(2, 60), "b": rng.randint(2, 60), "join": rng.choice("+-")},
    cases=lambda rng, p: _pairs(rng, -HUGE, HUGE),
    solve=_solve_inner,
    sketch="""
in n;
num sum = {{0 ~init $a}};
for i {{0 ~off 1}} {{n ~edge n - n / 6 - 1}} {
    in x, y;
    sum += {{$a ~swap $b}} * x $join {{$b ~swap $a}} * y;
}
out sum;
""",
)

FAMILIES = (
    product_mod, rises, window, stride_sum, rotate, filter_list, kth_value, pair_count, orders, two_columns,
)  # fmt: skip
