"""Problems about the structure of integers: digits, divisors, powers."""

from __future__ import annotations

import math
from random import Random

from data.starter.families.vocabulary import number_test, passes, scalar_cases
from data.starter.family import Family, Params
from data.starter.layouts import Scalars


def _draw_digits(rng: Random) -> Params:
    test = rng.choice((number_test(rng, 2, 7), number_test(rng, 2, 7), {}))
    if not test or test["op"] in ("==", "!="):
        even = rng.random() < 0.5
        test = {"which": "even" if even else "odd", "t": 2, "op": "==" if even else "!=",
                "cond": f"x % 2 {'==' if even else '!='} 0", "anti": f"x % 2 {'!=' if even else '=='} 0"}
    goal, term = rng.choice((("sum", "x"), ("number", "1")))
    return test | {"goal": goal, "term": term, "c": rng.randint(2, 30)}


def _solve_digits(p: Params, n: int) -> int:
    digits = [int(d) for d in str(n) if passes(p, int(d))]
    return p["c"] * (sum(digits) if p["goal"] == "sum" else len(digits))


digits = Family(
    name="digits",
    stories=(
        "Look at the decimal digits of `n` that are $which. Find the $goal of these digits, times $c.",
        "$who gets $c coins per unit of the $goal of the digits of `n` that are $which.",
        "Consider only those digits of `n` that are $which. Multiply the $goal of them by $c.",
        "Take the $goal of all digits of `n` that are $which, then multiply by $c.",
    ),
    result="the result",
    layout=Scalars("n", "0 <= n <= 10^17"),
    draw=_draw_digits,
    cases=lambda rng, p: scalar_cases(rng, (0, 10**17), small=5000, special=[(0,), (7,), (10**10 + 2358,)]),
    solve=_solve_digits,
    sketch="""
in n;
num sum = {{0 ~init 1}};
do {
    num x = n % 10;
    if ({{$cond ~swap $anti}}) sum += $term;
    n /= 10;
} while (n > {{0 ~off 9 ~edge 99}});
out sum * $c;
""",
)


reverse_number = Family(
    name="reverse_number",
    stories=(
        "Write the digits of `n` from right to left, drop leading zeros, then $verb $k.",
        "$who reads the number `n` backwards and then has to $verb $k. What is the result?",
        "Reverse the decimal digits of `n` (so 120 becomes 21) and $verb $k.",
        "A mirror shows `n` with its digits in opposite order. Take that number and $verb $k.",
    ),
    result="the resulting number",
    layout=Scalars("n", "1 <= n <= 10^14"),
    draw=lambda rng: dict(zip(("verb", "op"), rng.choice((("add", "+"), ("multiply by", "*"))), strict=True))
    | {"k": rng.randint(2, 99)},
    cases=lambda rng, p: scalar_cases(rng, (1, 10**14), small=900, special=[(1000,), (9,)]),
    solve=lambda p, n: int(str(n)[::-1]) + p["k"] if p["op"] == "+" else int(str(n)[::-1]) * p["k"],
    sketch="""
in n;
num r = {{0 ~init 1}};
while (n > {{0 ~off 9 ~edge 1}}) {
    r = r * 10 + n % {{10 ~swap 9}};
    n /= 10;
}
out r $op $k;
""",
)


def _draw_gcd(rng: Random) -> Params:
    which, expression = rng.choice((("greatest common divisor", "x"), ("least common multiple", "a / x * b")))
    verb, op = rng.choice((("add", "+"), ("multiply it by", "*")))
    return {"which": which, "expression": expression, "verb": verb, "op": op, "k": rng.randint(2, 60)}


def _solve_gcd(p: Params, a: int, b: int) -> int:
    value = math.gcd(a, b) if p["expression"] == "x" else math.lcm(a, b)
    return value + p["k"] if p["op"] == "+" else value * p["k"]


def _gcd_cases(rng: Random, p: Params) -> list[tuple[int, int]]:
    big = [(g * rng.randint(1, 9999), g * rng.randint(1, 9999)) for g in (10**5, 3 * 10**5, 4 * 10**5)]
    small = [(g * rng.randint(1, 6), g * rng.randint(2, 6)) for g in (rng.randint(1, 5), rng.randint(2, 5))]
    return [*small, (4 * 10**9, 4 * 10**9), (1, 4 * 10**9), (10**8 - 1, 10**8), *big, (3_000_000_021, 21)]


common_divisor = Family(
    name="common_divisor",
    stories=(
        "Find the $which of `a` and `b`, then $verb $k.",
        "$who knows two numbers `a` and `b`. Take their $which and $verb $k.",
        "Two wheels have `a` and `b` teeth. Compute the $which of these numbers and $verb $k.",
        "For given `a` and `b`, start from their $which; $verb $k.",
    ),
    result="the result",
    layout=Scalars("a b", "1 <= a, b <= 4 * 10^9"),
    draw=_draw_gcd,
    cases=_gcd_cases,
    solve=_solve_gcd,
    sketch="""
in a, b;
num x = a, y = {{b ~init 1}};
while (y {{> 0 ~off > 1 ~edge > 2 ~swap > x}}) {
    num t = x % y;
    x = y;
    y = t;
}
out {{$expression ~swap y}} $op $k;
""",
)


base_digits = Family(
    name="base_digits",
    stories=(
        "Write `n` in base $b. Find the $goal of its digits, plus $c.",
        "$who writes `n` in the number system with base $b and takes the $goal of the digits. Add $c to it.",
        "How large is the $goal of the digits of `n` in base $b? Increase it by $c.",
        "Take the base $b form of `n` and add $c to the $goal of its digits.",
    ),
    result="the result",
    layout=Scalars("n", "1 <= n <= 10^17"),
    draw=lambda rng: {"b": rng.randint(2, 30), "c": rng.randint(1, 60)}
    | dict(zip(("goal", "term"), rng.choice((("sum", "n % b"), ("number", "1"))), strict=True)),
    cases=lambda rng, p: scalar_cases(rng, (1, 10**17), small=500, special=[(1,), (p["b"] ** 6,)]),
    solve=lambda p, n: p["c"] + _base_digits(n, p["b"], p["goal"] == "sum"),
    sketch="""
in n;
num b = $b, sum = {{$c ~init 0}};
while (n {{> 0 ~off > 1 ~edge >= b ~swap >= 10}}) {
    sum += $term;
    n /= b;
}
out sum;
""",
)


def _base_digits(n: int, base: int, add: bool) -> int:
    total = 0
    while n:
        total += n % base if add else 1
        n //= base
    return total


power_mod = Family(
    name="power_mod",
    stories=(
        "Compute $c times `a` to the power `b`, modulo $m.",
        "Start with $c and multiply by `a` exactly `b` times, keeping only the remainder modulo $m.",
        "$who has $c cells; each hour their number is multiplied by `a`. Find it after `b` hours, modulo $m.",
        "Find the remainder of $c * a^b divided by $m.",
    ),
    result="the remainder",
    layout=Scalars("a b", "0 <= a <= 10^9, 0 <= b <= 1000"),
    draw=lambda rng: {"c": rng.randint(2, 60), "m": rng.randint(10**8, 10**9) * 2 - 1},
    cases=lambda rng, p: scalar_cases(rng, (0, 10**9), (0, 1000), small=6, special=[(0, 0), (10**9, 1), (7, 1000)]),
    solve=lambda p, a, b: p["c"] * pow(a, b, p["m"]) % p["m"],
    sketch="""
in a, b;
num r = {{$c ~init 1}};
for i {{0 ~off 1}} {{b ~swap a % 1000 ~edge b + 1}} {
    r = r * a % $m;
}
out r;
""",
)


def _draw_divisors(rng: Random) -> Params:
    goal, term = rng.choice((("sum", "x"), ("number", "1")))
    return number_test(rng, 2, 30) | {"goal": goal, "term": term, "c": rng.randint(0, 40)}


def _solve_divisors(p: Params, n: int) -> int:
    found = [x for x in range(1, n + 1) if n % x == 0 and passes(p, x)]
    return p["c"] + (sum(found) if p["goal"] == "sum" else len(found))


divisors = Family(
    name="divisors",
    stories=(
        "Consider the positive divisors of `n` that are $which. Find their $goal, plus $c.",
        "$who lists all divisors of `n` that are $which, takes the $goal of them and adds $c.",
        "Among the numbers that divide `n`, keep those $which. Add $c to their $goal.",
        "Add $c to the $goal of those divisors of `n` (1 and `n` included) that are $which.",
    ),
    result="the result",
    layout=Scalars("n", "1 <= n <= 5000"),
    draw=_draw_divisors,
    cases=lambda rng, p: scalar_cases(
        rng, (1, 5000), small=50, special=[(1,), (12 * rng.randint(5, 99),), (60 * rng.randint(2, 80),), (5040 - 720,)]
    ),
    solve=_solve_divisors,
    sketch="""
in n;
num sum = {{$c ~init $c + 1}};
for (num x = {{1 ~edge 3}}; x {{<= n ~off * 2 < n}}; x++) {
    if (n % x == 0 && {{$cond ~swap $anti}}) sum += $term;
}
out sum;
""",
    wide=False,
)


def _draw_powers(rng: Random) -> Params:
    shown, term = rng.choice((("i^2", "i * i"), ("i^3", "i * i * i"), ("i (i + 1)", "i * (i + 1)")))
    return {"shown": shown, "term": term, "k": rng.randint(2, 30), "c": rng.randint(1, 90)}


power_sum = Family(
    name="power_sum",
    stories=(
        "Sum $k * $shown - $c over all integers i from `a` to `b`.",
        "On day i $who earns $k * $shown coins and spends $c. Find the gain from day `a` to day `b`.",
        "Let t(i) = $k * $shown - $c. Add t(a), t(a + 1), ..., t(b).",
        "Row i of a pyramid has $k * $shown stones, $c of them broken. Count whole stones in the rows `a` to `b`.",
    ),
    result="the sum",
    layout=Scalars("a b", "1 <= a <= b <= 9000"),
    draw=_draw_powers,
    cases=lambda rng, p: [
        tuple(sorted((rng.randint(1, high), rng.randint(1, high)))) for high in (6, 9, 9000, 9000)
    ] + [(1, 9000), (8000, 9000), (1, 1), (rng.randint(1, 4000), 8500), (rng.randint(5, 90), 7000)],
    solve=lambda p, a, b: sum(
        p["k"] * {"i^2": i * i, "i^3": i**3}.get(p["shown"], i * (i + 1)) - p["c"] for i in range(a, b + 1)
    ),
    sketch="""
in a, b;
num sum = {{0 ~init a}};
for (num i = {{a ~edge a + 1}}; i {{<= b ~off < b}}; i++) {
    sum += $k * $term {{- ~swap +}} $c;
}
out sum;
""",
)

FAMILIES = (digits, reverse_number, common_divisor, base_digits, power_mod, divisors, power_sum)
