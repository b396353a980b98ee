"""Problems in the plane and on small grids: points, rectangles, intervals, patterns."""

from __future__ import annotations

from random import Random

from data.starter.families.vocabulary import HUGE, comparison, scalar_cases
from data.starter.family import Family, Params
from data.starter.layouts import Rows, Scalars

Points = list[tuple[int, int]]


def _point_cases(rng: Random, limit: int, near: int = 12) -> list[tuple[Points]]:
    def rows(count: int, low: int, high: int) -> tuple[Points]:
        return ([(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)],)

    mixed = [(rng.randint(-s, s), rng.randint(-s, s)) for s in rng.choices((near, limit), k=30)]
    return [rows(3, -near, near), rows(2, -near, near), rows(1, -limit, limit), rows(40, -limit, limit),
            rows(20, -limit, 0), rows(12, -near, near), (mixed,), rows(2, limit // 2, limit), rows(30, -near, near)]


def _draw_far(rng: Random) -> Params:
    far = rng.random() < 0.5
    return {"px": rng.randint(1, 40), "py": rng.randint(1, 40), "k": rng.randint(2, 30),
            "goal": "farthest" if far else "nearest", "op": ">" if far else "<", "swapped": "<" if far else ">"}


def _solve_far(p: Params, points: Points) -> int:
    found = [abs(x - p["px"]) + abs(y - p["py"]) for x, y in points]
    return p["k"] * (max(found) if p["op"] == ">" else min(found))


far_point = Family(
    name="far_point",
    stories=(
        "The distance of (x, y) from ($px, $py) is |x - $px| + |y - $py|. Find it for the $goal point, times $k.",
        "A taxi at ($px, $py) drives along streets |x - $px| + |y - $py| blocks to a guest. "
        "How far is the $goal guest, times $k?",
        "$who lives at ($px, $py). Take the Manhattan distance to the $goal of the shops and multiply it by $k.",
        "Print $k times the Manhattan distance between ($px, $py) and the $goal of the given points.",
    ),
    result="the result",
    layout=Rows("two integers x and y (-10^12 <= x, y <= 10^12)"),
    draw=_draw_far,
    cases=lambda rng, p: _point_cases(rng, HUGE),
    solve=_solve_far,
    sketch="""
in n;
num best = -1;
for i {{0 ~off 1}} n {
    in x, y;
    x -= {{$px ~init 0}};
    y -= $py;
    if (x < 0) x = {{-x ~edge 0}};
    if (y < 0) y = -y;
    if (best < 0 || x + y {{$op ~swap $swapped}} best) best = x + y;
}
out best * $k;
""",
)


def _draw_frame(rng: Random) -> Params:
    goal, expression, wrong = rng.choice(
        (
            ("area of the frame alone", "x * y - a * b", "x * y"),
            ("area of picture and frame together", "x * y", "x * y - a * b"),
            ("outer perimeter", "2 * (x + y)", "x + y"),
        )
    )
    return {"k": rng.randint(1, 30), "c": rng.randint(2, 40), "goal": goal, "expression": expression, "wrong": wrong}


def _solve_frame(p: Params, a: int, b: int) -> int:
    x, y = a + 2 * p["k"], b + 2 * p["k"]
    area = {"x * y": x * y, "x * y - a * b": x * y - a * b, "2 * (x + y)": 2 * (x + y)}
    return p["c"] * area[p["expression"]]


frame = Family(
    name="frame",
    stories=(
        "A picture of `a` by `b` gets a frame of width $k on all four sides. Find the $goal, times $c.",
        "$who frames an `a` x `b` picture; the frame is $k wide on every side. Multiply the $goal by $c.",
        "Around an `a` x `b` picture runs a border frame of width $k. Print $c times the $goal.",
        "The picture is `a` wide and `b` high, the frame $k thick all around. One unit costs $c; pay for the $goal.",
    ),
    result="the result",
    layout=Scalars("a b", "1 <= a, b <= 10^8"),
    draw=_draw_frame,
    cases=lambda rng, p: scalar_cases(rng, (1, 10**8), (1, 10**8), special=[(1, 1), (10**8, 10**8)]),
    solve=_solve_frame,
    sketch="""
in a, b;
num x = a + {{2 * $k ~off $k ~init 2}}, y = b + {{2 * $k ~edge $k}};
out ({{$expression ~swap $wrong}}) * $c;
""",
)


def _draw_inside(rng: Random) -> Params:
    return comparison(rng) | {"r": rng.randint(5, 40), "c": rng.randint(2, 60)}


def _solve_inside(p: Params, points: Points) -> int:
    limit = p["r"] ** 2
    return p["c"] * sum(
        {">": d > limit, "<": d < limit, ">=": d >= limit, "<=": d <= limit}[p["op"]]
        for d in (x * x + y * y for x, y in points)
    )


circle_count = Family(
    name="circle_count",
    stories=(
        "Count the points whose distance from the origin is $compared $r. Each one gives $c points.",
        "$who throws darts at a target centred at (0, 0); a dart at a distance $compared $r scores $c.",
        "A radio station at (0, 0) asks for the homes at distance $compared $r. Multiply their number by $c.",
        "How many points (x, y) have sqrt(x^2 + y^2) $compared $r? Print the number times $c.",
    ),
    result="the total",
    layout=Rows("two integers x and y (-10^9 <= x, y <= 10^9)"),
    draw=_draw_inside,
    cases=lambda rng, p: [
        *_point_cases(rng, 10**9, near=p["r"]),
        ([(p["r"], 0), (0, -p["r"]), (3, 4), (65536, 65536), (65536, 0)],),
        ([(50000, 50000), (65536, 131072), (46341, 1), (60000, 10000)],),
    ],
    solve=_solve_inside,
    sketch="""
in n;
num cnt = {{0 ~init 1}};
for i {{0 ~off 1}} n {
    in x, y;
    if (x * x + y * y {{$op ~swap $swapped}} $r{{ * $r ~edge }}) cnt++;
}
out cnt * $c;
""",
)


def _solve_grid(p: Params, grid: list[str]) -> int:
    counts = [row.count(p["mark"]) for row in grid]
    chosen = max(counts) if p["goal"] == "most" else min(counts)
    return p["c"] * (counts.index(chosen) + 1) + chosen


def _grid_cases(rng: Random, p: Params) -> list[tuple[list[str]]]:
    marks = p["mark"] + "."

    def grid(height: int, width: int, share: int) -> tuple[list[str]]:
        return (["".join(rng.choices(marks, weights=(share, 3), k=width)) for _ in range(height)],)

    return [grid(2, 3, 3), grid(3, 4, 3), grid(1, 1, 9), grid(20, 30, 3), grid(40, 8, 6), ([p["mark"] * 5] * 4,),
            (["." * 6] * 3,), grid(12, 20, 5), (["." * 7, p["mark"] * 7, "." + p["mark"] * 6],)]


densest_row = Family(
    name="densest_row",
    stories=(
        "Find the row with the $goal `$mark` signs, the first if several. Print $c times its number (from 1) plus "
        "its count of `$mark`.",
        "$who sees a map of `$mark` and dots. The first row with the $goal `$mark` is row r (from 1), with k of them: "
        "print $c * r + k.",
        "Let row r (counted from 1) be the first one with the $goal `$mark` signs, k in all. Compute $c * r + k.",
        "Rows are numbered from 1. For the earliest row with the $goal `$mark`, print $c * row + number of `$mark`.",
    ),
    result="the result",
    layout=Rows("a string of `$mark` and dots, all equally long (at most 40)"),
    draw=lambda rng: {"mark": rng.choice("#*ox@+%"), "c": rng.randint(50, 999)}
    | dict(zip(("goal", "op", "swapped"), rng.choice((("most", ">", "<"), ("fewest", "<", ">"))), strict=True)),
    cases=_grid_cases,
    solve=_solve_grid,
    sketch="""
in n;
num best = 0, row = 0;
for i {{0 ~edge 1}} n {
    word s, m;
    num cnt = {{0 ~init 1}};
    for j 0 {{m ~over m - 1}} {
        if (s[j] == '$mark') cnt++;
    }
    if ({{i == 0 ~edge i == 1}} || cnt {{$op ~swap $swapped}} best) {
        best = cnt;
        row = {{i + 1 ~off i}};
    }
}
out row * $c + best;
""",
    wide=False,
)

triangle_area = Family(
    name="triangle_area",
    stories=(
        "A triangle has the corners (0, 0), (`a`, `b`) and (`c`, `d`). Print twice its area, times $k, plus $m.",
        "$who fences the triangle (0, 0), (`a`, `b`), (`c`, `d`). Multiply its doubled area by $k and add $m.",
        "Compute $k * |a * d - b * c| + $m, where |a * d - b * c| is twice the area of a triangle.",
        "Take double the area of the triangle with corners (0, 0), (`a`, `b`), (`c`, `d`); times $k, plus $m.",
    ),
    result="the result",
    layout=Scalars("a b c d", "each from -10^8 to 10^8"),
    draw=lambda rng: {"k": rng.randint(2, 60), "m": rng.randint(1, 99)},
    cases=lambda rng, p: scalar_cases(
        rng, *[(-(10**8), 10**8)] * 4, special=[(10**8, 0, 0, -(10**8)), (1, 1, 5, 5), (3, 10**8, 10**8, 2)]
    ),
    solve=lambda p, a, b, c, d: p["k"] * abs(a * d - b * c) + p["m"],
    sketch="""
in a, b, c, d;
num x = a * {{d ~off c}} {{- ~swap +}} b * {{c ~off d}};
if (x {{< 0 ~edge < -9}}) x = {{-x ~edge 0}};
out x * $k + {{$m ~init 0}};
""",
)


def _draw_overlap(rng: Random) -> Params:
    start, length = rng.randint(1, 60), rng.randint(2, 40)
    return {"k": start, "l": length, "end": start + length, "m": rng.randint(2, 60)}


def _overlap_cases(rng: Random, p: Params) -> list[tuple[int, int]]:
    def pair(low: int, high: int) -> tuple[int, int]:
        a, b = sorted((rng.randint(low, high), rng.randint(low, high)))
        return a, b

    end = p["end"]
    inner = p["k"] + p["l"] // 2
    return [pair(0, 40), (p["k"] - 1, inner), (end + 5, end + 9), (-HUGE, HUGE), (inner, 10**11), (-(10**11), inner),
            (10**10, HUGE), (p["k"], end), (-(10**11), p["k"] - 3), (end, end + 1), (inner, 2**32 * 3)]


overlap = Family(
    name="overlap",
    stories=(
        "How long is the common part of the intervals [`a`, `b`] and [$k, $end]? Multiply the length by $m.",
        "$who works from minute `a` to `b`, the shop is open from $k to $end. $m coins are paid per shared minute.",
        "A road is wet from `a` to `b` and under repair from $k to $end. A unit of both at once costs $m.",
        "Intersect the segment from `a` to `b` with the segment from $k to $end and scale its length by $m.",
    ),
    result="the result (0 if they do not overlap)",
    layout=Scalars("a b", "-10^12 <= a <= b <= 10^12"),
    draw=_draw_overlap,
    cases=_overlap_cases,
    solve=lambda p, a, b: p["m"] * max(0, min(b, p["end"]) - max(a, p["k"])),
    sketch="""
in a, b;
if (a {{< ~swap >}} $k) a = {{$k ~init 0}};
if (b {{> ~swap <}} $end) b = $end;
num d = b - a{{ ~off  + 1}};
if (d < {{0 ~edge -99}}) d = 0;
out d * $m;
""",
)


def _draw_pattern(rng: Random) -> Params:
    a, b = rng.sample("#*ox@+=", 2)
    return {"p": a, "q": b, "k": rng.randint(2, 9), "s": rng.randint(1, 5)}


def _solve_pattern(p: Params, n: int) -> str:
    rows = [p["p"] * (p["s"] + i) + p["q"] * p["k"] for i in range(n)]
    return "\n".join(rows)


pattern = Family(
    name="pattern",
    stories=(
        "Print `n` rows. The first has $s `$p` signs, each next row one more; every row ends with $k `$q` signs.",
        "$who draws `n` lines: $s times `$p` in the first and one `$p` more in each later line, then always $k `$q`.",
        "Draw stairs of `n` rows: row i (i = 0, 1, ...) is $s + i signs `$p` followed by $k signs `$q`.",
        "A fence has `n` rows; row i from 0 holds $s + i times `$p`, then $k times `$q`.",
    ),
    result="the rows, without spaces",
    layout=Scalars("n", "1 <= n <= 20"),
    draw=_draw_pattern,
    cases=lambda rng, p: [(n,) for n in (2, 3, 1, 4, 7, 20, 11)],
    solve=_solve_pattern,
    sketch="""
in n;
for i {{0 ~off 1}} {{n ~over n - 1}} {
    for (int j = {{0 ~init 1}}; j {{< $s + i ~edge <= i}}; j++) putc '{{$p ~swap $q}}';
    for (int j = 0; j < $k; j++) putc '{{$q ~swap $p}}';
    endl;
}
""",
    wide=False,
)


def _solve_cells(p: Params, n: int, m: int) -> int:
    total = n * m
    return p["a"] * (total - total // p["k"]) + p["b"] * (total // p["k"])


tiles = Family(
    name="tiles",
    stories=(
        "A floor has `n` rows of `m` tiles, numbered from 1. A tile whose number $k divides costs $b, any other $a.",
        "$who numbers `n` * `m` seats 1, 2, 3, ... A seat divisible by $k costs $b coins, any other $a.",
        "Cells of an `n` x `m` board are numbered from 1. Multiples of $k weigh $b, the rest weigh $a. Find the sum.",
        "Of the numbers 1 to `n` * `m`, each multiple of $k scores $b and each other number $a.",
    ),
    result="the total",
    layout=Scalars("n m", "1 <= n, m <= 10^8"),
    draw=lambda rng: {"a": rng.randint(2, 40), "b": rng.randint(41, 90), "k": rng.randint(2, 20)},
    cases=lambda rng, p: scalar_cases(rng, (1, 10**8), (1, 10**8), special=[(1, 1), (p["k"], 3), (10**8, 10**8)]),
    solve=_solve_cells,
    sketch="""
in n, m;
num x = n * m, y = {{x ~off (x - 1) ~edge n}} / $k;
out (x - {{y ~init 0}}) * {{$a ~swap $b}} + y * {{$b ~swap $a}};
""",
)

FAMILIES = (far_point, frame, circle_count, densest_row, triangle_area, overlap, pattern, tiles)
