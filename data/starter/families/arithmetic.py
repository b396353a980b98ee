"""Problems about a few numbers: formulas, digits, remainders."""

from __future__ import annotations

import math
from random import Random

from data.starter.families.vocabulary import comparison, number_test, passes, scalar_cases
from data.starter.family import Family, Params
from data.starter.layouts import Scalars

TRILLION = 10**12


def _draw_bill(rng: Random) -> Params:
    deal, op = rng.choice((("a delivery fee", "+"), ("a gift card", "-")))
    return {"a": rng.randint(2, 60), "b": rng.randint(2, 60), "c": rng.randint(1, 300), "deal": deal, "op": op,
            "effect": "raises" if op == "+" else "lowers"}


bill = Family(
    name="bill",
    stories=(
        "A pen costs $a coins, a book $b coins. $who buys `x` pens and `y` books; $deal $effect the bill by $c coins.",
        "$who orders `x` small boxes at $a coins each and `y` large ones at $b each; $deal $effect the total by $c.",
        "Seats cost $a (adults) and $b (children). For `x` adults and `y` children, $deal $effect the sum by $c.",
        "A shop sells apples for $a and melons for $b. $who takes `x` and `y` of them; $deal $effect the price by $c.",
    ),
    result="the final amount",
    layout=Scalars("x y", "0 <= x, y <= 10^12"),
    draw=_draw_bill,
    cases=lambda rng, p: scalar_cases(rng, (0, TRILLION), (0, TRILLION), special=[(0, 0)]),
    solve=lambda p, x, y: p["a"] * x + p["b"] * y + (p["c"] if p["op"] == "+" else -p["c"]),
    sketch="""
in x, y;
num ans = $a * {{x ~swap y}} + $b * {{y ~swap x ~off (y + 1)}};
out ans {{$op $c ~init + 0 ~edge $op 1}};
""",
)


def _signed(rng: Random, low: int, high: int) -> tuple[str, int]:
    return rng.choice("+-"), rng.randint(low, high)


def _draw_quadratic(rng: Random) -> Params:
    (bs, b), (cs, c) = _signed(rng, 2, 50), _signed(rng, 1, 99)
    return {"a": rng.randint(2, 20), "b": b, "c": c, "bs": bs, "cs": cs, "br": "-" if bs == "+" else "+"}


def _solve_quadratic(p: Params, x: int) -> int:
    b = p["b"] if p["bs"] == "+" else -p["b"]
    return p["a"] * x * x + b * x + (p["c"] if p["cs"] == "+" else -p["c"])


quadratic = Family(
    name="quadratic",
    stories=(
        "Evaluate the polynomial $a x^2 $bs $b x $cs $c at an integer `x`.",
        "$who studies the curve y = $a x^2 $bs $b x $cs $c. Find y for a given `x`.",
        "A machine turns `x` into $a x^2 $bs $b x $cs $c. What comes out?",
        "Let f(x) = $a x^2 $bs $b x $cs $c. Compute f at the given point.",
    ),
    result="the value",
    layout=Scalars("x", "-10^8 <= x <= 10^8"),
    draw=_draw_quadratic,
    cases=lambda rng, p: scalar_cases(rng, (-(10**8), 10**8), special=[(0,), (-(10**8),)]),
    solve=_solve_quadratic,
    sketch="""
in x;
out $a * x * x {{$bs ~swap $br}} $b * {{x ~off (x + 1)}} {{$cs $c ~init + 0 ~edge $cs 1}};
""",
)

sum_of_multiples = Family(
    name="sum_of_multiples",
    stories=(
        "$who writes down every multiple of $k from 1 to `n` and adds them up, then adds $c.",
        "Add all integers from 1 to `n` that are divisible by $k. Increase the sum by $c.",
        "Every house from 1 to `n` whose number is a multiple of $k pays its number in coins. The chest held $c coins.",
        "Start with $c and add each positive multiple of $k that is at most `n`.",
    ),
    result="the sum",
    layout=Scalars("n", "1 <= n <= 10^9"),
    draw=lambda rng: {"k": rng.randint(2, 40), "c": rng.randint(1, 200)},
    cases=lambda rng, p: scalar_cases(rng, (1, 10**9), small=60, special=[(1,), (p["k"] * 1000,)]),
    solve=lambda p, n: p["c"] + p["k"] * (n // p["k"]) * (n // p["k"] + 1) // 2,
    sketch="""
in n;
num m = {{n ~off (n - 1) ~swap $k}} / $k;
out {{$c ~init 0 ~edge 1}} + $k * m * {{(m + 1) ~off (m - 1)}} / 2;
""",
)


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


def _draw_clock(rng: Random) -> Params:
    order = rng.choice(("hours, minutes, seconds", "seconds, minutes, hours"))
    m, h = rng.randint(5, 90), rng.randint(5, 90)
    parts = {"hours": f"n / {m * h}", "minutes": f"n / {m} % {h}", "seconds": f"n % {m}"}
    words = order.split(", ")
    return {"m": m, "h": h, "order": order, "parts": ", ".join(parts[w] for w in words),
            "reversed": ", ".join(parts[w] for w in words[::-1]), "late": ", ".join(
                parts[w].replace("/ ", "% ", 1) if w == "minutes" else parts[w] for w in words)}


def _solve_clock(p: Params, n: int) -> list[int]:
    n += 1
    found = {"hours": n // (p["m"] * p["h"]), "minutes": n // p["m"] % p["h"], "seconds": n % p["m"]}
    return [found[word] for word in p["order"].split(", ")]


clock = Family(
    name="clock",
    stories=(
        "On a far planet a minute has $m seconds and an hour $h minutes. Split `n` + 1 seconds into $order.",
        "$who counts time in minutes of $m seconds and hours of $h minutes. Write `n` + 1 seconds as $order.",
        "A clock started `n` + 1 seconds ago. One minute is $m seconds, one hour $h minutes. Show $order.",
        "With $m seconds to a minute and $h minutes to an hour, turn `n` + 1 seconds into $order.",
    ),
    result="three integers: $order",
    layout=Scalars("n", "0 <= n <= 10^13"),
    draw=_draw_clock,
    cases=lambda rng, p: scalar_cases(
        rng, (0, 10**13), small=9000, special=[(0,), (p["m"] * p["h"] - 1,), (p["m"] * p["h"] * 7 - 2,)]
    ),
    solve=_solve_clock,
    sketch="""
in n;
{{n++; ~off n--; ~init ~edge n += 2;}}
out {{$parts ~swap $late}};
""",
)

boxes = Family(
    name="boxes",
    stories=(
        "$who packs `n` cups into boxes of $k. $rule A box costs $c coins.",
        "There are `n` $things to store, $k to a drawer. $rule Each drawer costs $c.",
        "A bus takes $k people and a ride costs $c. `n` people wait. $rule",
        "A tray holds $k rolls; `n` rolls were baked. $rule Each tray sells for $c.",
    ),
    result="the total cost",
    layout=Scalars("n", "0 <= n <= 10^13"),
    draw=lambda rng: {"k": rng.randint(2, 60), "c": rng.randint(2, 99)}
    | rng.choice(
        (
            {"rule": "The last one may be partly filled.", "up": 1, "fix": "k - 1", "bad": "k"},
            {"rule": "Only full ones count.", "up": 0, "fix": "0", "bad": "k - 1"},
        )
    ),
    cases=lambda rng, p: scalar_cases(
        rng, (0, 10**13), small=300, special=[(0,), (p["k"],), (p["k"] * 10**9,), (p["k"] * 5 + 1,), (p["k"] * 8 - 1,)]
    ),
    solve=lambda p, n: (n // p["k"] + (1 if p["up"] and n % p["k"] else 0)) * p["c"],
    sketch="""
in n;
num k = $k;
num cnt = {{(n + $fix) / k ~off (n + $bad) / k ~init 1 + n / k ~edge n / k + 1 ~swap k / (n + 1)}};
out cnt * $c;
""",
)


def _draw_clamp(rng: Random) -> Params:
    low = rng.randint(-99, 50)
    return {"a": rng.randint(2, 30), "b": rng.randint(1, 99), "low": low,
            "high": (low // 10 + rng.randint(20, 90)) * 10**9}


clamp = Family(
    name="clamp",
    stories=(
        "Compute y = $a x + $b. If y is below $low use $low, if it is above $high use $high.",
        "A sensor shows $a x + $b for a signal `x`, but never less than $low nor more than $high.",
        "$who pays $a x + $b coins, kept inside the range from $low to $high.",
        "The level is $a x + $b, limited to the interval [$low, $high].",
    ),
    result="the limited value",
    layout=Scalars("x", "-10^12 <= x <= 10^12"),
    draw=_draw_clamp,
    cases=lambda rng, p: scalar_cases(
        rng,
        (-TRILLION, TRILLION),
        special=[((p["high"] // p["a"]) - 5,), (-TRILLION,), (p["low"] // p["a"] - 9,), (p["high"] // p["a"] // 2,)],
    ),
    solve=lambda p, x: min(max(p["a"] * x + p["b"], p["low"]), p["high"]),
    sketch="""
in x;
num y = $a * {{x ~off (x + 1)}} + {{$b ~init 0}};
if (y {{< ~swap > ~edge ==}} $low) y = $low;
if (y {{> ~swap <}} $high) y = $high;
out y;
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

tariff = Family(
    name="tariff",
    stories=(
        "The first $k units of power cost $a coins each, every further unit $b coins. $who used `n` units.",
        "Water: $a coins per litre up to $k litres, and $b for each litre beyond. Find the price of `n` litres.",
        "A worker gets $a coins an hour for the first $k hours and $b for each later hour. Find the pay for `n` hours.",
        "Sending `n` messages costs $a each for the first $k and $b each after that.",
    ),
    result="the total",
    layout=Scalars("n", "0 <= n <= 10^12"),
    draw=lambda rng: {"k": rng.randint(5, 90), "a": rng.randint(2, 40), "b": rng.randint(41, 99)},
    cases=lambda rng, p: scalar_cases(
        rng, (0, TRILLION), small=150, special=[(0,), (p["k"],), (p["k"] + 1,), (p["k"] - 1,)]
    ),
    solve=lambda p, n: p["a"] * min(n, p["k"]) + p["b"] * max(0, n - p["k"]),
    sketch="""
in n;
num ans = n * $a;
if (n {{> ~swap <}} $k) ans = {{$k * $a ~init 0}} + (n - $k{{ ~off  - 1 ~edge  + 1}}) * $b;
out ans;
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


def _draw_offers(rng: Random) -> Params:
    yes, no = rng.choice((("YES", "NO"), ("OK", "BAD"), ("GOOD", "POOR"), ("TRUE", "FALSE")))
    return comparison(rng) | {"a": rng.randint(2, 40), "b": rng.randint(2, 40), "c": rng.randint(1, 99), "yes": yes,
                              "no": no}


def _offer_cases(rng: Random, p: Params) -> list[tuple[int, int]]:
    def near(scale: int, shift: int) -> tuple[int, int]:
        x = rng.randint(scale // 2 + 1, scale + 1)
        return x, (p["a"] * x + p["c"] + shift) // p["b"]

    one = near(30, 0)
    return [one, (rng.randint(1, 20), one[1]), near(10**11, 100), near(10**11, -200), (10**9, 1), (1, 10**9),
            (10**12, 3 * 10**9), (3 * 10**9, 10**12), near(10**6, 90)]


def _solve_offers(p: Params, x: int, y: int) -> str:
    left, right = p["a"] * x + p["c"], p["b"] * y
    truth = {">": left > right, "<": left < right, ">=": left >= right, "<=": left <= right}[p["op"]]
    return p["yes"] if truth else p["no"]


two_offers = Family(
    name="two_offers",
    stories=(
        "Shop A asks $a * x + $c coins, shop B asks $b * y. Is the price of A $compared that of B?",
        "$who compares $a * x + $c with $b * y. Is the first $compared the second?",
        "Check whether $a * x + $c is $compared $b * y.",
        "Team A has $a * x + $c points and team B $b * y. Is the score of A $compared that of B?",
    ),
    result="`$yes` if so, otherwise `$no`",
    layout=Scalars("x y", "0 <= x, y <= 10^12"),
    draw=_draw_offers,
    cases=_offer_cases,
    solve=_solve_offers,
    sketch="""
in x, y;
num a = $a * {{x ~edge y}} + {{$c ~init 0}};
num b = $b * {{y ~edge x}};
say a {{$op ~swap $swapped ~off == ~init !=}} b ? "$yes" : "$no";
""",
)

FAMILIES = (
    bill, quadratic, sum_of_multiples, digits, reverse_number, common_divisor, clock, boxes, clamp, base_digits,
    power_mod, tariff, divisors, power_sum, two_offers,
)  # fmt: skip
