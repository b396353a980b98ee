"""Problems about a few numbers: prices, formulas, limits."""

from __future__ import annotations

from random import Random

from data.starter.families.vocabulary import comparison, scalar_cases
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

FAMILIES = (bill, quadratic, sum_of_multiples, clock, boxes, clamp, tariff, two_offers)
