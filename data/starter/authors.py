"""The authors of the pretraining programs: how each writes, and the mistake each tends to make.

The first lines of a program tell its author, in every family alike, so a policy that learns which beginnings pay off
on the train families gains on the held-out ones too. `CAREFUL_SHARE` is the one constant that moves the pass rate of
the pretrained model; `authors(share)` gives the mixture for another value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from random import Random

from data.starter.family import Instance
from data.starter.sketch import Style, kinds, resolve, to_cpp

CAREFUL_SHARE = 0.47
FAULT_RATE = 0.92  # how often a careless author makes the mistake


@dataclass(frozen=True)
class Author:
    """`mistakes` in order of liking: the first that a sketch has a place for is made. Empty: a careful author.

    Kinds: over (32-bit integers), off (by one), init (wrong first value), swap (comparison or operands), edge (a case
    forgotten), syntax (does not compile).
    """

    name: str
    weight: float  # share within the careful or within the careless authors
    style: Style
    mistakes: tuple[str, ...] = ()

    @property
    def careful(self) -> bool:
        return not self.mistakes


_LONG_NAMES = {"sum": "total", "ans": "result", "cnt": "count", "best": "answer", "cur": "current", "a": "values"}
_SHORT_NAMES = {"sum": "s1", "ans": "r1", "cnt": "c1", "best": "b1", "cur": "c0"}
_RES_NAMES = {"sum": "acc", "ans": "res", "best": "top"}

AUTHORS: tuple[Author, ...] = (
    Author("steady", 0.5, Style("#include <cstdio>\ntypedef long long ll;", number="ll")),
    Author(
        "planner",
        0.3,
        Style("// 64-bit integers throughout\n#include <cstdio>", indent="  ", step="++i", names=_RES_NAMES),
    ),
    Author(
        "streamer",
        0.2,
        Style(
            "#include <iostream>\nusing namespace std;\nusing ll = long long;",
            io="cout", number="ll", newline="'\\n'",
        ),  # fmt: skip
    ),
    Author(
        "old_c",
        0.24,
        Style("#include <stdio.h>", main="int main(void)", number="int", names=_SHORT_NAMES),
        ("over", "init", "off", "edge", "swap"),
    ),
    Author(
        "fencepost",
        0.18,
        Style("#include<cstdio>\nusing namespace std;", allman=True, step="++i"),
        ("off", "edge", "init", "swap"),
    ),
    Author(
        "zero_start",
        0.17,
        Style("#include <cstdlib>\n#include <cstdio>", names=_LONG_NAMES, returns=False),
        ("init", "edge", "off", "swap"),
    ),
    Author(
        "sprinter",
        0.17,
        Style("// quick solution\n#include <cstdio>", main="int main()", tight=True, number="long", indent=" "),
        ("swap", "init", "off", "edge"),
    ),
    Author(
        "typist",
        0.16,
        Style("#include <string>\n#include <iostream>", io="std::cout", number="long long", indent="\t"),
        ("syntax",),
    ),
    Author(
        "kitchen_sink",
        0.03,
        Style("#include <bits/stdc++.h>\nusing namespace std;", io="cout", names=_RES_NAMES),
        ("edge", "off", "init", "swap"),
    ),
    Author(
        "newcomer",
        0.05,
        Style("#include <iostream>\n\nusing namespace std;", io="cout", number="int", allman=True),
        ("over", "edge", "off", "init", "swap"),
    ),
)
BY_NAME = {author.name: author for author in AUTHORS}


def mixture(careful_share: float = CAREFUL_SHARE) -> dict[str, float]:
    """The probability of each author; the careful ones together have `careful_share`."""
    if not 0 < careful_share < 1:
        raise ValueError(f"the share of careful authors must be between 0 and 1, not {careful_share}")
    totals = {careful: sum(a.weight for a in AUTHORS if a.careful == careful) for careful in (True, False)}
    shares = {True: careful_share, False: 1 - careful_share}
    return {a.name: shares[a.careful] * a.weight / totals[a.careful] for a in AUTHORS}


def author_of(program: str) -> str:
    """Which author's header a program begins with; "other" if none."""
    text = re.sub(r"\n#include <(?:cstring|algorithm|string)>", "", program.lstrip())
    matches = [a.name for a in AUTHORS if text.startswith(a.style.header)]
    return max(matches, key=lambda name: len(BY_NAME[name].style.header), default="other")


def mistake_for(instance: Instance, author: Author) -> str | None:
    """The mistake that this author makes in this problem; None where the style alone (`int`) spoils it."""
    places = kinds(instance.sketch)
    for kind in author.mistakes:
        if kind == "over" and instance.family.wide:
            return None
        if kind == "syntax" or kind in places:
            return kind
    return None


def program(instance: Instance, author: Author, rng: Random, faulty: bool | None = None) -> str:
    """A program for the problem as this author writes it.

    `faulty` forces or forbids the author's mistake; by default a careless author makes it at `FAULT_RATE`.
    """
    if faulty is None:
        faulty = rng.random() < FAULT_RATE
    mistake = mistake_for(instance, author) if faulty else None
    style = author.style
    if not faulty and style.number == "int":
        style = replace(style, number="long long")
    if rng.random() < 0.25:
        style = replace(style, step="i++" if style.step == "++i" else "++i")
    code = to_cpp(resolve(instance.sketch, mistake), style)
    return _break(code, rng) if mistake == "syntax" else code


def _break(code: str, rng: Random) -> str:
    """The program with a missing semicolon, or with a variable that was never declared."""
    lines = code.splitlines()
    if rng.random() < 0.6:
        ends = [i for i, line in enumerate(lines) if line.startswith("\t") and line.endswith(";")]
        chosen = ends[-2] if rng.random() < 0.5 else rng.choice(ends)
        lines[chosen] = lines[chosen][:-1]
    else:
        declared = [i for i, line in enumerate(lines) if re.match(r"\t(long long|std::string) ", line)]
        lines[declared[0]] = re.sub(r"^\t(long long|std::string) ", "\t", lines[declared[0]])
    return "\n".join(lines) + "\n"
