"""Does a program's output match the expected one? Pure functions of bytes; nothing is decoded.

Each rule is a function `(output, expected, tolerance) -> bool`; `RULES` names them as `rewards.problem.Checker.type`
does. Checker programs are run by `rewards/grader/judge.py`, not here.

    tokens     the same words, separated by any white space (the default)
    exact      the same bytes, but for line breaks at the very end
    caseless   as tokens, with ASCII letters of either case alike
    float      as caseless, but a real number, printed or expected, within the tolerance, absolute or relative to it
    contains   the expected words are somewhere in the output: where there are none, the exit code alone counts
    unordered  the same lines in any order, each compared as tokens; blank lines do not count
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

# Decimal notation only: float() would also read "nan", "inf" and "1_000".
_INTEGER = re.compile(rb"[+-]?[0-9]+")
_NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(rb"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_MAX_NUMBER_LENGTH = 400  # longer tokens are not read as numbers


def same_tokens(output: bytes, expected: bytes, tolerance: float = 0.0) -> bool:
    return output.split() == expected.split()


def same_bytes(output: bytes, expected: bytes, tolerance: float = 0.0) -> bool:
    return output.rstrip(b"\r\n") == expected.rstrip(b"\r\n")


def same_caseless_tokens(output: bytes, expected: bytes, tolerance: float = 0.0) -> bool:
    return output.lower().split() == expected.lower().split()


def contains_words(output: bytes, expected: bytes, tolerance: float = 0.0) -> bool:
    return all(word in output for word in expected.split())


def same_lines_unordered(output: bytes, expected: bytes, tolerance: float = 0.0) -> bool:
    def lines(text: bytes) -> Counter[tuple[bytes, ...]]:
        return Counter(words for line in text.splitlines() if (words := tuple(line.split())))

    return lines(output) == lines(expected)


def same_numbers(output: bytes, expected: bytes, tolerance: float) -> bool:
    found, wanted = output.split(), expected.split()
    return len(found) == len(wanted) and all(
        _is_close(one, other, tolerance) for one, other in zip(found, wanted, strict=True)
    )


def _is_close(found: bytes, wanted: bytes, tolerance: float) -> bool:
    """|found - wanted| <= tolerance * max(1, |wanted|) where either is written as a real number, with a point or an
    exponent.

    Two integers must be equal: a relative tolerance would take 1000000007 for 1000000008. Words must be equal but for
    their case; nan and inf, in any spelling, match nothing.
    """
    if _NOT_FINITE.fullmatch(found):
        return False
    if max(len(found), len(wanted)) > _MAX_NUMBER_LENGTH or not _NUMBER.fullmatch(wanted):
        return found.lower() == wanted.lower()
    if not _NUMBER.fullmatch(found):
        return False
    if _INTEGER.fullmatch(found) and _INTEGER.fullmatch(wanted):
        return int(found) == int(wanted)
    difference = abs(float(found) - float(wanted))  # "1e999" makes it inf or nan, which compare as unequal
    return difference <= tolerance * max(1.0, abs(float(wanted))) < float("inf")


RULES: dict[str, Callable[[bytes, bytes, float], bool]] = {
    "tokens": same_tokens,
    "exact": same_bytes,
    "caseless": same_caseless_tokens,
    "float": same_numbers,
    "contains": contains_words,
    "unordered": same_lines_unordered,
}


def matches(rule: str, output: bytes, expected: bytes, tolerance: float = 1e-6) -> bool:
    """Compare with the named rule. Raises KeyError for a name that is not in `RULES`."""
    return RULES[rule](output, expected, tolerance)
