"""What a family of problems is: a story, an input layout, test cases, a Python solution and a C++ sketch.

A family's parameters (constants, operations, directions) make a problem; its wording (story, names, phrases of the
input section) is drawn separately, so one set of parameters has many statements. A sketch is a program in the small
notation of `sketch.py`; `$name` stands for a parameter in stories, results and sketches alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from string import Template
from typing import Any

from data.starter.layouts import Layout
from rewards.problem import Problem, Test

Params = dict[str, Any]
Case = tuple[Any, ...]

PEOPLE = ("Ann", "Boris", "Chen", "Dana", "Emil", "Farah", "Gita", "Hugo", "Ines", "Jonas", "Kira", "Lev")
THINGS = ("readings", "scores", "prices", "heights", "weights", "votes", "profits", "numbers", "values", "signals")
RESULTS = ("Print $it.", "Output $it.", "Print a single line: $it.", "Write $it.")
PUBLIC_CASES = 2
TIME_LIMIT = 0.5  # seconds; right programs need milliseconds, and one that loops for ever holds up a whole step


@dataclass(frozen=True)
class Family:
    """One family of problems.

    `stories` are at least four ways to tell the task; `result` names what is printed; `draw` picks parameters; `cases`
    makes the arguments of `solve`, the first two being the visible samples; `solve` returns the expected output.
    """

    name: str
    stories: tuple[str, ...]
    result: str
    layout: Layout
    draw: Callable[[Random], Params]
    cases: Callable[[Random, Params], Sequence[Case]]
    solve: Callable[..., Any]
    sketch: str
    wide: bool = True  # numbers leave 32 bits, so a program with `int` fails


@dataclass(frozen=True)
class Instance:
    """A family with its parameters fixed and its wording chosen."""

    family: Family
    params: Params
    problem: Problem

    @property
    def sketch(self) -> str:
        return Template(self.family.sketch).substitute(self.params)


def params_digest(family: Family, params: Params) -> int:
    """A number that identifies what a problem asks, whatever its wording."""
    text = json.dumps([family.name, params], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def make_instance(family: Family, params: Params, rng: Random) -> Instance:
    """Word the problem and make its tests."""
    words = params | {"who": rng.choice(PEOPLE), "things": rng.choice(THINGS)}
    story = Template(rng.choice(family.stories)).substitute(words)
    layout = Template(family.layout.describe(rng)).substitute(words)
    result = Template(rng.choice(RESULTS)).substitute(it=Template(family.result).substitute(words))
    statement = f"{story}\n\n## Input\n{layout}\n\n## Output\n{result}"
    tests = tuple(
        Test(family.layout.render(case), f"{_text(family.solve(params, *case))}\n", public=index < PUBLIC_CASES)
        for index, case in enumerate(family.cases(rng, params))
    )
    digest = hashlib.sha256(statement.encode()).hexdigest()[:10]
    identifier = f"{family.name}-{digest}"
    problem = Problem(
        identifier, statement, tests, time_limit=TIME_LIMIT, source=family.name, cluster=family.name
    )
    return Instance(family, params, problem)


def _text(answer: Any) -> str:
    return " ".join(map(str, answer)) if isinstance(answer, list | tuple) else str(answer)
