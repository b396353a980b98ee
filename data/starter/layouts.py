"""How a test case is written as text, and how the input section describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol


class Layout(Protocol):
    def describe(self, rng: Random) -> str: ...

    def render(self, case: tuple[Any, ...]) -> str: ...


def _line(values: Sequence[Any]) -> str:
    return " ".join(map(str, values)) + "\n"


@dataclass(frozen=True)
class Scalars:
    """One line of integers. Case: the integers. `bounds` is the sentence that limits them."""

    names: str
    bounds: str

    def describe(self, rng: Random) -> str:
        names = self.names.split()
        quoted = " and ".join(filter(None, (", ".join(f"`{n}`" for n in names[:-1]), f"`{names[-1]}`")))
        if len(names) == 1:
            return rng.choice(
                (
                    f"One integer {quoted} ({self.bounds}).",
                    f"A single line with an integer {quoted}, {self.bounds}.",
                    f"The only line holds {quoted} ({self.bounds}).",
                )
            )
        return rng.choice(
            (
                f"One line with the integers {quoted} ({self.bounds}).",
                f"The integers {quoted}, separated by spaces, {self.bounds}.",
                f"The only line holds {quoted} ({self.bounds}).",
            )
        )

    def render(self, case: tuple[Any, ...]) -> str:
        return _line(case)


@dataclass(frozen=True)
class Array:
    """`n` (and further integers) on the first line, `n` integers on the second. Case: the list, then the others."""

    bounds: str
    least: int = 1
    extra: str = ""  # names of further integers, with their bounds

    def describe(self, rng: Random) -> str:
        extra = f" and {self.extra}" if self.extra else ""
        size = f"`n` ({self.least} <= n <= 40)"
        return rng.choice(
            (
                f"The first line holds {size}{extra}. The second line holds `n` integers, {self.bounds}.",
                f"First {size}{extra}, then a line of `n` integers, {self.bounds}.",
                f"Line 1: {size}{extra}. Line 2: `n` integers, {self.bounds}.",
            )
        )

    def render(self, case: tuple[Any, ...]) -> str:
        values, *rest = case
        return _line([len(values), *rest]) + _line(values)


@dataclass(frozen=True)
class Rows:
    """`n` on the first line, then `n` lines. Case: a list of tuples (or of strings). `row` says what a line holds."""

    row: str
    least: int = 1

    def describe(self, rng: Random) -> str:
        size = f"`n` ({self.least} <= n <= 40)"
        return rng.choice(
            (
                f"The first line holds {size}. Each of the next `n` lines holds {self.row}.",
                f"First {size}, then `n` lines, each with {self.row}.",
                f"Line 1: {size}. Then `n` lines with {self.row}.",
            )
        )

    def render(self, case: tuple[Any, ...]) -> str:
        (rows,) = case
        return _line([len(rows)]) + "".join(_line([row] if isinstance(row, str) else row) for row in rows)


@dataclass(frozen=True)
class Word:
    """A line with one word. Case: the word."""

    letters: str = "lowercase letters"

    def describe(self, rng: Random) -> str:
        return rng.choice(
            (
                f"One line with a string `s` of 1 to 60 {self.letters}.",
                f"A string `s` of 1 to 60 {self.letters}.",
                f"The only line holds `s`, made of {self.letters} (at most 60).",
            )
        )

    def render(self, case: tuple[Any, ...]) -> str:
        return _line(case)
