"""Problems about one word: letters, shifts, runs, brackets."""

from __future__ import annotations

import itertools
from random import Random

from data.starter.family import Family, Params
from data.starter.layouts import Word

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LOWER = Word()


def _words(rng: Random, letters: str, special: tuple[str, ...] = ()) -> list[tuple[str]]:
    """Two short samples, one letter, one letter repeated, words over few and over all letters, the special ones."""

    def word(alphabet: str, low: int, high: int) -> str:
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(low, high)))

    few = letters[:4]
    return [
        (text,)
        for text in (
            word(few + LETTERS[:3], 4, 7), word(letters, 3, 7), rng.choice(letters), rng.choice(letters) * 17,
            word(few, 30, 60), word(LETTERS, 50, 60), word(few + LETTERS, 8, 20), word(few[:2] + "z", 9, 30), *special,
        )
    ]  # fmt: skip


def _distinct(rng: Random, count: int) -> list[str]:
    return rng.sample(LETTERS, count)


def _draw_letter_score(rng: Random) -> Params:
    x, y = _distinct(rng, 2)
    return {"x": x, "y": y, "a": rng.randint(2, 60), "b": rng.randint(2, 60), "c": rng.randint(1, 60)}


letter_score = Family(
    name="letter_score",
    stories=(
        "Every `$x` in `s` is worth $a points, every `$y` is worth $b points and other letters $c.",
        "$who pays $a coins for a letter $x, $b for a letter $y and $c for any other. Find the cost of `s`.",
        "A typewriter needs $a seconds to write `$x`, $b seconds to write `$y`, and $c for the rest. How long for `s`?",
        "Letters have weights: $x weighs $a, $y weighs $b, all others $c. Find the weight of `s`.",
    ),
    result="the total",
    layout=LOWER,
    draw=_draw_letter_score,
    cases=lambda rng, p: _words(rng, p["x"] + p["y"] + "mt", (p["x"] + p["y"] + p["y"], p["y"] + "q" + p["x"])),
    solve=lambda p, s: sum({p["x"]: p["a"], p["y"]: p["b"]}.get(c, p["c"]) for c in s),
    sketch="""
word s, n;
num sum = {{0 ~init 1 ~over 2}};
for i {{0 ~off 1}} n {
    if (s[i] == '{{$x ~swap $y}}') sum += $a;
    else if (s[i] == '{{$y ~swap $x}}') sum += $b;
    else sum += {{$c ~edge 0}};
}
out sum;
""",
    wide=False,
)

caesar = Family(
    name="caesar",
    stories=(
        "Shift every letter of `s` forward by $k places in the alphabet; after z comes a.",
        "$who hides a word by moving each letter $k steps on, going round from z to a.",
        "Encode `s` with a Caesar code of shift $k (cyclic over a to z).",
        "Replace each letter by the one $k positions later in the alphabet, cyclically.",
    ),
    result="the encoded word, then `$mark`, with no space",
    layout=LOWER,
    draw=lambda rng: {"k": rng.randint(1, 25), "mark": rng.choice("!?.#*+")},
    cases=lambda rng, p: _words(rng, LETTERS, ("xyz", "zzzyyxwvu")),
    solve=lambda p, s: "".join(LETTERS[(LETTERS.index(c) + p["k"]) % 26] for c in s) + p["mark"],
    sketch="""
word s, n;
for i {{0 ~off 1}} n {
    putc 'a' + (s[i] - 'a' {{+ ~swap + 52 -}} {{$k ~init $k + 1 ~over $k - 1}}) % {{26 ~edge 25}};
}
putc '$mark';
endl;
""",
    wide=False,
)

def _draw_palindrome(rng: Random) -> Params:
    yes, no = rng.choice((("YES", "NO"), ("Yes", "No"), ("TRUE", "FALSE"), ("GOOD", "BAD"), ("SAME", "OTHER")))
    k, side = rng.randint(2, 12), rng.choice(("first", "last"))
    low, high = (k, 0) if side == "first" else (0, k)
    return {"k": k, "side": side, "low": low, "high": high + 1, "off": high + 2, "yes": yes, "no": no}


def _palindromes(rng: Random, p: Params) -> list[tuple[str]]:
    def word(half: str, middle: str = "") -> tuple[str]:
        extra = "".join(rng.choice("qwxy") for _ in range(p["k"]))
        kept = half + middle + half[::-1]
        return (extra + kept if p["side"] == "first" else kept + extra,)

    samples = [word("ab", "c"), word("ab", "ca")]
    hidden = [word("abcd"), word("abcdea"), word("aabbcd", "e"), word("abcde", "xy"), ("a",), word("abc", "dca"),
              word("abacabad", "ef"), word("mnopq")]
    return rng.sample(samples, 2) + rng.sample(hidden, 8)


def _solve_palindrome(p: Params, s: str) -> str:
    rest = s[p["k"] :] if p["side"] == "first" else s[: -p["k"]]
    return p["yes"] if rest == rest[::-1] else p["no"]


palindrome = Family(
    name="palindrome",
    stories=(
        "Decide whether `s` reads the same from both ends when its $side $k letters are removed.",
        "$who cuts off the $side $k letters of `s`. Is the rest a palindrome (an empty rest is one)?",
        "Ignore the $side $k letters of `s`. Is what remains equal to its own reverse?",
        "After dropping the $side $k letters, does `s` read the same backwards? Nothing left counts as yes.",
    ),
    result="`$yes` or `$no`",
    layout=LOWER,
    draw=_draw_palindrome,
    cases=_palindromes,
    solve=_solve_palindrome,
    sketch="""
word s, n;
num i = {{$low ~init 1 ~swap 1}}, j = n - {{$high ~off $off}};
while (i < j && s[i] == s[j]) {
    i{{++ ~over  += 2}};
    j{{-- ~edge  -= 2}};
}
say i {{>= ~swap <}} j ? "$yes" : "$no";
""",
    wide=False,
)


longest_block = Family(
    name="longest_block",
    stories=(
        "Find the longest block of equal neighbouring letters in `s`; print $a times its length plus $b.",
        "$who scores $a points for each letter of the longest run of one repeated letter, and $b points extra.",
        "How long is the longest run of the same letter? Multiply by $a and add $b.",
        "Take the greatest number of equal adjacent letters in a row, times $a, plus $b.",
    ),
    result="the result",
    layout=LOWER,
    draw=lambda rng: {"a": rng.randint(2, 80), "b": rng.randint(1, 80)},
    cases=lambda rng, p: _words(rng, "ab", ("abbbccaaaa", "aaabb", "abcd", "bbaaabbbbbaa")),
    solve=lambda p, s: p["a"] * max(len(list(run)) for _, run in itertools.groupby(s)) + p["b"],
    sketch="""
word s, n;
num cur = {{1 ~off 0}}, best = {{1 ~init 0 ~over 2}};
for i 1 {{n ~edge n - 1}} {
    if (s[i] {{== ~swap !=}} s[i - 1]) cur++;
    else cur = {{1 ~off 0}};
    if (cur > best) best = cur{{ ~init  + 1}};
}
out best * $a + $b;
""",
    wide=False,
)


def _draw_replace(rng: Random) -> Params:
    x, y, z = _distinct(rng, 3)
    return {"x": x, "y": y, "z": z}


def _solve_replace(p: Params, s: str) -> str:
    return "".join(p["y"] if c == p["x"] else c for c in s if c != p["z"]) + "."


replace_letter = Family(
    name="replace_letter",
    stories=(
        "In `s` replace every letter $x by $y and delete every letter $z.",
        "$who has a keyboard that writes $y instead of $x, and nothing at all for $z. What appears for `s`?",
        "Change each `$x` of `s` to `$y` and leave out each `$z`.",
        "Delete all letters $z from `s`; turn all letters $x into $y.",
    ),
    result="the new word with a dot at the end",
    layout=LOWER,
    draw=_draw_replace,
    cases=lambda rng, p: _words(
        rng, p["x"] + p["z"] + p["y"] + "k", (p["z"] + p["x"] + p["y"], p["x"] * 3 + p["z"] * 2 + "ko")
    ),
    solve=_solve_replace,
    sketch="""
word s, n;
for i {{0 ~off 1}} {{n ~init n - 1 ~over n - 1}} {
    if (s[i] == '$x') putc '{{$y ~swap $x}}';
    else if (s[i] {{!= ~swap ==}} '{{$z ~edge $y}}') putc s[i];
}
putc '.';
endl;
""",
    wide=False,
)


def _draw_vowels(rng: Random) -> Params:
    which, cond, anti = rng.choice(
        (
            ("vowel (a, e, i, o, u)", "{v}", "!{v}"),
            ("consonant (not a, e, i, o, u)", "!{v}", "{v}"),
        )
    )
    test = "(c == 'a' || c == 'e' || c == 'i' || c == 'o' || c == 'u')"
    return {"which": which, "cond": cond.format(v=test), "anti": anti.format(v=test), "m": rng.randint(2, 60),
            "a": rng.randint(2, 90)}


def _solve_vowels(p: Params, s: str) -> int:
    total = 0
    for position, c in enumerate(s, 1):
        if (c in "aeiou") != p["cond"].startswith("!"):
            total += position * p["m"]
        else:
            total += p["a"]
    return total


vowel_score = Family(
    name="vowel_score",
    stories=(
        "Each $which of `s` scores $m times its position (the first is 1); any other letter scores $a.",
        "$who earns $m coins times the position for a $which, and $a coins for another letter. Positions start at 1.",
        "Letter i of `s` (i = 1, 2, ...) is worth $m * i if it is a $which, else $a.",
        "Add $m times the position (from 1) for each $which, and $a for each other letter.",
    ),
    result="the total",
    layout=LOWER,
    draw=_draw_vowels,
    cases=lambda rng, p: _words(rng, "aeku"),
    solve=_solve_vowels,
    sketch="""
word s, n;
num sum = {{0 ~init 1 ~over 2}};
for i {{0 ~edge 1}} n {
    char c = s[i];
    if ({{$cond ~swap $anti}}) sum += $m * {{(i + 1) ~off i}};
    else sum += $a;
}
out sum;
""",
    wide=False,
)


def _draw_depth(rng: Random) -> Params:
    up, down = rng.choice(("()", "[]", "<>", "ud", "ab", "pq", "xy"))
    goal = rng.choice(("highest", "lowest"))
    return {"up": up, "down": down, "goal": goal, "op": ">" if goal == "highest" else "<",
            "swapped": "<" if goal == "highest" else ">", "a": rng.randint(2, 9), "b": rng.randint(2, 9)}


def _solve_depth(p: Params, s: str) -> list[int]:
    levels = list(itertools.accumulate((p["a"] if c == p["up"] else -p["b"] for c in s), initial=0))
    return [max(levels) if p["goal"] == "highest" else min(levels), levels[-1]]


depth = Family(
    name="depth",
    stories=(
        "Start at level 0. A `$up` in `s` goes $a up, a `$down` goes $b down. Find the $goal level (0 counts too).",
        "$who climbs: `$up` means $a steps up, `$down` means $b steps down. What is the $goal height reached from 0?",
        "Read `s`: each `$up` adds $a, each `$down` subtracts $b, beginning at 0. What is the $goal value on the way?",
        "A counter begins at 0, grows by $a at `$up` and drops by $b at `$down`. Find its $goal value, start included.",
    ),
    result="that $goal value and then the last value",
    layout=Word("characters `$up` and `$down`"),
    draw=_draw_depth,
    cases=lambda rng, p: [
        ("".join(rng.choices(p["up"] + p["down"], weights=(w, 4), k=n)),)
        for n, w in ((5, 4), (6, 4), (1, 4), (1, 9), (40, 5), (60, 2), (60, 9), (25, 4), (35, 7))
    ],
    solve=_solve_depth,
    sketch="""
word s, n;
num cur = 0, best = {{0 ~init 1 ~over 2}};
for i 0 {{n ~off n - 1}} {
    if (s[i] {{== ~swap !=}} '$up') cur += {{$a ~edge 1}};
    else cur -= {{$b ~edge 1}};
    if (cur $op best) best = cur;
}
out best, cur{{ ~init  + 1}};
""",
    wide=False,
)

word_hash = Family(
    name="word_hash",
    stories=(
        "Let h = $h. For each letter of `s` set h = (h * $b + v) mod $m, with v = 1 for a, 2 for b, ..., 26 for z.",
        "$who signs words: begin with h = $h and for every letter replace h by (h * $b + v) mod $m (a is 1, z is 26).",
        "A hash starts at $h; a letter of value v (a = 1, ..., z = 26) turns h into (h * $b + v) mod $m.",
        "Compute h over `s`: at first h = $h, then h = (h * $b + v) mod $m for each letter, v from 1 (a) to 26 (z).",
    ),
    result="the final h",
    layout=LOWER,
    draw=lambda rng: {"h": rng.randint(1, 99), "b": rng.randint(27, 999), "m": rng.randint(10**5, 10**6) * 1000 + 7},
    cases=lambda rng, p: _words(rng, LETTERS),
    solve=lambda p, s: _hash(p, s),
    sketch="""
word s, n;
num h = {{$h ~init 0}};
for i {{0 ~edge 1}} n {
    h = (h * $b + s[i] - 'a'{{ + 1 ~off  + 0 ~swap  - 1}}) % $m;
}
out h;
""",
)


def _hash(p: Params, s: str) -> int:
    h = p["h"]
    for c in s:
        h = (h * p["b"] + LETTERS.index(c) + 1) % p["m"]
    return h


def _draw_pair(rng: Random) -> Params:
    x, y = _distinct(rng, 2)
    return {"x": x, "y": y, "a": rng.randint(2, 90), "b": rng.randint(1, 90)}


letter_pair = Family(
    name="letter_pair",
    stories=(
        "How often does the letter $x stand directly before the letter $y in `s`? Print $a times that number plus $b.",
        "$who gets $b coins, and $a more for each place in `s` where `$y` follows right after `$x`.",
        "Count occurrences of `$x$y` in `s`. Multiply by $a, add $b.",
        "Each substring `$x$y` of `s` adds $a to a score that starts at $b. Find the final score.",
    ),
    result="the result",
    layout=LOWER,
    draw=_draw_pair,
    cases=lambda rng, p: _words(rng, p["x"] + p["y"], ((p["x"] + p["y"]) * 9, p["y"] + p["x"] + p["y"])),
    solve=lambda p, s: p["a"] * s.count(p["x"] + p["y"]) + p["b"],
    sketch="""
word s, n;
num sum = {{$b ~init 0 ~over $b + 1}};
for i {{1 ~off 2}} n {
    if (s[i - 1] == '{{$x ~swap $y}}' {{&& ~edge ||}} s[i] == '{{$y ~swap $x}}') sum += $a;
}
out sum;
""",
    wide=False,
)


def _draw_every(rng: Random) -> Params:
    k = rng.randint(2, 6)
    return {"k": k, "s": rng.randint(1, 3), "mark": rng.choice("!?.#*+=")}


every_letter = Family(
    name="every_letter",
    stories=(
        "Take the letter at position $s of `s` (the first is 1), then each one $k places further on, to the end.",
        "$who reads position $s of the word (counted from 1) and from there always jumps $k letters ahead.",
        "Keep the letters at positions $s, $s + $k, $s + 2 * $k, ... of `s`, the first position being 1.",
        "Start at position $s (positions begin at 1) and collect letters with a step of $k.",
    ),
    result="the letters taken, in order, between two `$mark` signs",
    layout=LOWER,
    draw=_draw_every,
    cases=lambda rng, p: _words(rng, LETTERS),
    solve=lambda p, s: p["mark"] + s[p["s"] - 1 :: p["k"]] + p["mark"],
    sketch="""
word s, n;
putc '$mark';
int i = {{$s - 1 ~off $s ~init 0 ~swap $k - 1 ~over $s}};
while (i < {{n ~init n - 1}}) {
    putc s[i];
    i += {{$k ~edge $k + 1}};
}
putc '$mark';
endl;
""",
    wide=False,
)

FAMILIES = (
    letter_score, caesar, palindrome, longest_block, replace_letter, vowel_score, depth, word_hash, letter_pair,
    every_letter,
)  # fmt: skip
