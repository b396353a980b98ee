"""Problems that follow a process step by step: accounts, robots, growth, queues, games."""

from __future__ import annotations

from random import Random

from data.starter.families.vocabulary import ARRAY_BOUNDS, HUGE, array_cases, scalar_cases
from data.starter.family import Family, Params
from data.starter.layouts import Array, Rows, Scalars, Word


def _solve_account(p: Params, changes: list[int]) -> int:
    balance = p["s"]
    for x in changes:
        if balance + x >= p["f"]:
            balance += x
        else:
            balance -= p["q"]
    return balance


account = Family(
    name="account",
    stories=(
        "An account holds $s coins. A change is made only if at least $f coins remain; else a fine of $q is taken.",
        "$who starts with $s coins. Each number is added if the result is at least $f; otherwise $q coins are lost.",
        "Begin with b = $s. For each x: if b + x >= $f then add x to b, else subtract $q from b.",
        "A tank holds $s litres and changes one by one. A change leaving less than $f is refused and $q litres leak.",
    ),
    result="the final amount",
    layout=Array(ARRAY_BOUNDS),
    draw=lambda rng: {"s": rng.randint(5, 60), "f": rng.randint(-30, 20), "q": rng.randint(1, 9)},
    cases=lambda rng, p: array_cases(rng, special=[[p["f"] - p["s"], 5], [-100, p["f"] - p["s"] - 1, 40]]),
    solve=_solve_account,
    sketch="""
in n;
num sum = {{$s ~init 0}};
for i 0 {{n ~off n - 1}} {
    in x;
    if (sum + x {{>= ~swap <}} $f) sum += x;
    else {{sum -= $q ~edge sum = $f}};
}
out sum;
""",
)


def _solve_reduce(p: Params, n: int) -> int:
    steps = 0
    while n > p["e"]:
        n = n // p["d"] if n % p["d"] == 0 else n - 1
        steps += 1
    return steps


reduce_steps = Family(
    name="reduce_steps",
    stories=(
        "While `n` is greater than $e: divide it by $d if it is divisible, otherwise subtract 1. Count the steps.",
        "$who repeats until the number is $e or less: a multiple of $d is divided by $d, any other loses 1.",
        "A number above $e is divided by $d when possible without remainder, else lowered by 1. How many moves until "
        "it is not above $e?",
        "Count moves from `n` until it is at most $e; a move is n / $d if $d divides n, else n - 1.",
    ),
    result="the number of steps",
    layout=Scalars("n", "1 <= n <= 10^15"),
    draw=lambda rng: {"e": rng.randint(1, 30), "d": rng.randint(2, 20)},
    cases=lambda rng, p: scalar_cases(
        rng, (1, 10**15), small=60, special=[(p["e"],), (p["e"] + 1,), (p["d"] ** 5,)], hidden=8
    ),
    solve=_solve_reduce,
    sketch="""
in n;
num cnt = {{0 ~init 1}};
while (n > {{$e ~off $e + 1}}) {
    if (n % $d {{== 0 ~swap > 0}}) n /= $d;
    else n{{-- ~edge  -= 2}};
    cnt++;
}
out cnt;
""",
)


def _solve_robot(p: Params, s: str) -> list[int]:
    x, y = p["x"], p["y"]
    for c in s:
        x += {"R": p["a"], "L": -p["a"]}.get(c, 0)
        y += {"U": p["b"], "D": -p["b"]}.get(c, 0)
    return [x, y]


robot = Family(
    name="robot",
    stories=(
        "A robot stands at ($x, $y). R and L move it $a right or left, U and D move it $b up or down.",
        "$who walks from the point ($x, $y): R adds $a to x, L subtracts $a from x, U adds $b to y, D subtracts $b.",
        "A ship starts at ($x, $y). Commands R, L change x by +$a, -$a; U, D change y by +$b, -$b.",
        "Begin at ($x, $y) and obey `s`: R and L are $a steps along x, U and D are $b steps along y.",
    ),
    result="the final x and y",
    layout=Word("letters L, R, U, D"),
    draw=lambda rng: {"x": rng.randint(1, 30), "y": rng.randint(1, 30), "a": rng.randint(2, 30),
                      "b": rng.randint(2, 30)},
    cases=lambda rng, p: [
        ("".join(rng.choices("LRUD", weights=w, k=n)),)
        for n, w in ((4, (1, 1, 1, 1)), (5, (1, 1, 1, 1)), (1, (1, 1, 0, 0)), (1, (0, 0, 1, 1)), (60, (1, 5, 1, 4)),
                     (60, (5, 1, 4, 1)), (20, (1, 1, 3, 1)), (30, (1, 2, 1, 1)), (9, (0, 1, 0, 1)))
    ],
    solve=_solve_robot,
    sketch="""
word s, n;
num x = {{$x ~init 0}}, y = {{$y ~init 0 ~over $y + 1}};
for i {{0 ~off 1}} n {
    if (s[i] == 'R') x {{+= ~swap -=}} $a;
    else if (s[i] == 'L') x {{-= ~swap +=}} $a;
    else if (s[i] == 'U') y += {{$b ~edge $a}};
    else y -= {{$b ~edge $a}};
}
out x, y;
""",
    wide=False,
)


def _solve_lift(p: Params, floors: list[int]) -> int:
    place, total = p["s"], 0
    for x in floors:
        total += p["u"] * (x - place) if x > place else p["d"] * (place - x)
        place = x
    return total


lift = Family(
    name="lift",
    stories=(
        "A lift starts on floor $s. Going up one floor costs $u coins, going down one floor $d. It visits the floors "
        "listed, in order.",
        "$who climbs between heights, first at $s: a metre up takes $u minutes, a metre down $d. Visit all in order.",
        "A crane at height $s moves to the given heights one after another; a unit up costs $u, a unit down costs $d.",
        "From $s go to each listed number in turn. An increase costs $u per unit and a decrease $d per unit.",
    ),
    result="the total cost",
    layout=Array(ARRAY_BOUNDS),
    draw=lambda rng: {"s": rng.randint(1, 20), "u": rng.randint(2, 30), "d": rng.randint(31, 60)},
    cases=lambda rng, p: array_cases(rng),
    solve=_solve_lift,
    sketch="""
in n;
num cur = {{$s ~init 0}}, sum = 0;
for i {{0 ~off 1}} n {
    in x;
    if (x {{> ~swap <}} cur) sum += (x - cur) * $u;
    else sum += {{(cur - x) ~edge (x - cur)}} * $d;
    cur = x;
}
out sum;
""",
)


def _solve_growth(p: Params, n: int, t: int) -> int:
    for _ in range(t):
        n = n * p["m"] + p["a"] if p["op"] == "+" else n * p["m"] - p["a"]
    return n


growth = Family(
    name="growth",
    stories=(
        "A lake holds `n` fish; each year their number is multiplied by $m, then $a $verb. Find it after `t` years.",
        "$who owns `n` coins. Each day they become $m times as many, then n = n $op $a. Find the coins after `t` days.",
        "Starting from `n`, repeat n = n * $m $op $a exactly `t` times.",
        "A colony of `n` cells has $m * n $op $a cells an hour later. How many after `t` hours?",
    ),
    result="the final number",
    layout=Scalars("n t", "30 <= n <= 10^5, 0 <= t <= 8"),
    draw=lambda rng: {"m": rng.randint(3, 20), "a": rng.randint(1, 60)}
    | dict(zip(("verb", "op"), rng.choice((("arrive", "+"), ("leave", "-"))), strict=True)),
    cases=lambda rng, p: [(40, 2), (rng.randint(31, 60), 1), (35, 0), *((rng.randint(10**4, 10**5), 8) for _ in "ab"),
                          (10**5, 7), (10**5, 1), (rng.randint(30, 99), 8), (rng.randint(10**4, 10**5), 6)],
    solve=_solve_growth,
    sketch="""
in n, t;
for i {{0 ~off 1}} {{t ~edge t + 1}} {
    n = n * $m {{$op ~swap * 2 $op}} {{$a ~init 1}};
}
out n;
""",
)


def _solve_recurrence(p: Params, n: int) -> int:
    x, y = p["f0"], p["f1"]
    for _ in range(n):
        x, y = y, (p["a"] * y + p["b"] * x) % p["m"]
    return x


recurrence = Family(
    name="recurrence",
    stories=(
        "Let f(0) = $f0, f(1) = $f1 and f(i) = ($a f(i-1) + $b f(i-2)) mod $m. Find f(n).",
        "$who continues the sequence $f0, $f1: a new term is $a * last + $b * the one before last, modulo $m.",
        "A sequence starts with term 0 = $f0, term 1 = $f1; then next = ($a * previous + $b * the one before) mod $m.",
        "Terms: f(0) = $f0, f(1) = $f1. Each later term is $a times the last plus $b times the one before, mod $m.",
    ),
    result="term `n` (the first term has number 0)",
    layout=Scalars("n", "0 <= n <= 1000"),
    draw=lambda rng: {"f0": rng.randint(1, 30), "f1": rng.randint(1, 30), "a": rng.randint(2, 9),
                      "b": rng.randint(10, 30), "m": rng.randint(10**5, 10**6) * 1000 + 9},
    cases=lambda rng, p: [(n,) for n in (3, rng.randint(4, 6), 0, 1, 2, 40, 997, rng.randint(500, 1000), 1000, 25)],
    solve=_solve_recurrence,
    sketch="""
in n;
num x = {{$f0 ~init 0}}, y = {{$f1 ~init 1}};
for i {{0 ~off 1}} {{n ~edge n + 1}} {
    num t = ({{$a ~swap $b}} * y + {{$b ~swap $a}} * x) % $m;
    x = y;
    y = t;
}
out x;
""",
)


def _solve_tank(p: Params, rain: list[int]) -> list[int]:
    level, lost = p["s"], 0
    for x in rain:
        level += x
        if level > p["k"]:
            lost += level - p["k"]
            level = p["k"]
        level = max(0, level - p["u"])
    return [level, lost]


tank = Family(
    name="tank",
    stories=(
        "A tank of capacity $k holds $s litres. Each day x litres flow in, what is above $k is lost, then $u are used "
        "(never below 0).",
        "$who stores grain: at first $s sacks, at most $k fit. Each day x arrive, the excess is wasted, then $u are "
        "eaten if there are so many, else all.",
        "A battery holds $s, at most $k. Each hour x is charged, the excess is lost; then it drops by $u, not below 0.",
        "A shelf with room for $k has $s books. Daily x come, those over $k are given away, then $u are sold (or all).",
    ),
    result="the final amount and the total lost",
    layout=Array("each from 0 to 10^12"),
    draw=lambda rng: {"k": rng.randint(40, 99), "s": rng.randint(1, 30), "u": rng.randint(2, 20)},
    cases=lambda rng, p: array_cases(rng, low=0, small=60, special=[[0] * 30, [1, 2, 3, 0, 1, 2]]),
    solve=_solve_tank,
    sketch="""
in n;
num cur = {{$s ~init 0}}, sum = {{0 ~init 1}};
for i 0 {{n ~off n - 1}} {
    in x;
    cur += x;
    if (cur {{> ~swap <}} $k) {
        sum += cur - $k;
        cur = $k;
    }
    cur -= $u;
    if (cur < {{0 ~edge -$k}}) cur = 0;
}
out cur, sum;
""",
)


def _solve_queue(p: Params, rows: list[tuple[int, int]]) -> int:
    time = p["o"]
    for arrival, length in rows:
        time = max(time, arrival) + length * p["f"] + p["g"]
    return time


def _queue_cases(rng: Random, p: Params) -> list[tuple[list[tuple[int, int]]]]:
    def rows(count: int, gap: int, length: int) -> tuple[list[tuple[int, int]]]:
        arrivals = sorted(rng.randint(0, gap * count) for _ in range(count))
        return ([(arrival, rng.randint(1, length)) for arrival in arrivals],)

    return [rows(2, 20, 5), rows(3, 40, 5), ([(0, 1)],), rows(12, 300, 5), rows(40, 10**10, 10**9), ([(90, 2)],),
            rows(30, 10, 10**10), rows(9, 500, 9), rows(25, 10**10, 9)]


queue = Family(
    name="queue",
    stories=(
        "A desk opens at minute $o and serves people in order. A person arriving at x with y papers takes "
        "$f * y + $g minutes.",
        "$who repairs machines one by one from time $o. A machine brought at time x with y faults needs "
        "$f * y + $g minutes.",
        "One oven, free from minute $o, bakes orders in turn: order (x, y) comes at minute x and needs $f * y + $g.",
        "A server is ready at second $o. Job (x, y) comes at second x and runs $f * y + $g seconds, one at a time.",
    ),
    result="the time when the last one is finished",
    layout=Rows("two integers x and y (0 <= x, y <= 10^12, x never decreases)"),
    draw=lambda rng: {"o": rng.randint(5, 60), "f": rng.randint(2, 20), "g": rng.randint(1, 30)},
    cases=_queue_cases,
    solve=_solve_queue,
    sketch="""
in n;
num t = {{$o ~init 0}};
for i {{0 ~off 1}} n {
    in x, y;
    if (x {{> ~swap < ~edge ==}} t) t = x;
    t += y * $f + {{$g ~init 0}};
}
out t;
""",
)


def _solve_match(p: Params, rows: list[tuple[int, int]]) -> list[int]:
    first = sum(p["w"] if x > y else p["t"] if x == y else 0 for x, y in rows)
    second = sum(p["w"] if y > x else p["t"] if x == y else 0 for x, y in rows)
    return [first, second]


def _match_cases(rng: Random, p: Params) -> list[tuple[list[tuple[int, int]]]]:
    def rows(count: int, high: int) -> tuple[list[tuple[int, int]]]:
        found = []
        for _ in range(count):
            x = rng.randint(0, high)
            found.append((x, x if rng.random() < 0.3 else rng.randint(0, high)))
        return (found,)

    return [rows(3, 9), rows(4, 9), ([(5, 5)],), rows(10, 2), rows(40, HUGE), ([(HUGE, 1)],), rows(25, HUGE),
            ([(1, 4 * 10**9), (2, 9 * 10**9)],), rows(30, HUGE)]


match_score = Family(
    name="match_score",
    stories=(
        "Two teams play rounds; in each the larger number wins $w points, and a tie gives $t points to both.",
        "$who and a friend throw x and y. The larger throw earns $w coins; for equal throws both get $t.",
        "In every row compare x and y: the greater side gets $w, on equality both sides get $t. Total both sides.",
        "Chess clubs score x and y in a match. A win brings $w points, a draw $t points to each side.",
    ),
    result="the points of x and of y",
    layout=Rows("two integers x and y (0 <= x, y <= 10^12)"),
    draw=lambda rng: {"w": rng.randint(2, 60), "t": rng.randint(1, 40)},
    cases=_match_cases,
    solve=_solve_match,
    sketch="""
in n;
num a = {{0 ~init 1}}, b = 0;
for i {{0 ~off 1}} n {
    in x, y;
    if (x {{> ~swap <}} y) a += $w;
    if (x {{< ~swap >}} y) b += $w;
    if (x == y) a += $t{{, b += $t ~edge }};
}
out a, b;
""",
)

FAMILIES = (account, reduce_steps, robot, lift, growth, recurrence, tank, queue, match_score)
