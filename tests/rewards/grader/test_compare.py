"""The comparison rules, as properties and on the cases where known judges go wrong."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.grader.compare import RULES, matches
from rewards.problem import CHECKERS

WORDS = st.lists(st.from_regex(rb"[!-~]{1,8}", fullmatch=True), max_size=8)
SPACE = st.sampled_from([b" ", b"\n", b"\t", b"  ", b"\r\n", b" \n\n "])
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def test_every_checker_has_a_rule() -> None:
    assert set(RULES) | {"program"} == set(CHECKERS)


@given(st.binary(max_size=60))
def test_every_rule_accepts_the_answer_itself(text: bytes) -> None:
    assert all(matches(rule, text, text) for rule in RULES)


@given(WORDS, st.data())
def test_tokens_ignore_white_space_only(words: list[bytes], data: st.DataObject) -> None:
    output = b"".join(word + data.draw(SPACE) for word in words)
    for rule in ("tokens", "caseless", "float"):
        assert matches(rule, output, b" ".join(words))
        assert not matches(rule, output + b" extra", b" ".join(words))
        assert not words or not matches(rule, b" ".join(words[:-1]), b" ".join(words))


@given(WORDS)
def test_caseless(words: list[bytes]) -> None:
    text = b" ".join(words)
    assert matches("caseless", text.swapcase(), text)
    assert matches("tokens", text.swapcase(), text) == (text.swapcase() == text)


@given(st.lists(WORDS, max_size=6), st.randoms(use_true_random=False))
def test_unordered_is_a_multiset_of_lines(lines: list[list[bytes]], random) -> None:
    expected = b"\n".join(b" ".join(line) for line in lines)
    shuffled = list(lines)
    random.shuffle(shuffled)
    assert matches("unordered", b"\n\n".join(b"  ".join(line) for line in shuffled), expected)
    assert not matches("unordered", expected + b"\none more", expected)


@given(FINITE, st.floats(min_value=-2, max_value=2, allow_nan=False), st.sampled_from([1e-3, 1e-6, 1e-9]))
def test_float_tolerance_is_absolute_or_relative(value: float, share: float, tolerance: float) -> None:
    margin = tolerance * max(1.0, abs(value))
    output = f"{value + share * margin:.17e}".encode()
    off = abs(float(output) - value)
    if not math.isclose(off, margin, rel_tol=1e-3):  # the boundary itself is a matter of rounding
        assert matches("float", output, f"{value:.17e}".encode(), tolerance) == (off < margin)


@pytest.mark.parametrize(
    "output", [b"nan", b"NaN", b"inf", b"-inf", b"infinity", b"1e999", b"", b"x", b"0x1p0", b"1_0"]
)
@pytest.mark.parametrize("expected", [b"1.0", b"1e9", b"10", b"10.0", b"0.0"])
def test_what_is_no_number_never_meets_one(output: bytes, expected: bytes) -> None:
    assert not matches("float", output, expected, 0.99)


@pytest.mark.parametrize(
    ("rule", "output", "expected", "accepted"),
    [
        ("exact", b"1  2\n", b"1  2", True),
        ("exact", b"1 2", b"1  2", False),
        ("exact", b" 1", b"1", False),
        ("exact", b"A", b"a", False),
        ("tokens", b"Yes", b"YES", False),
        ("tokens", b"1", b"1\n2", False),  # a right first line is not enough
        ("tokens", b"1.0", b"1", False),
        ("tokens", b"", b"", True),
        ("float", b"1000000007", b"1000000008", False),  # integers have no tolerance
        ("float", b"9007199254740993", b"9007199254740992", False),
        ("float", b"2.0000", b"2", True),
        ("float", b"2", b"2.0", True),
        ("float", b"3", b"2", False),
        ("float", b"+2", b"2", True),
        ("float", b"IMPOSSIBLE", b"IMPOSSIBLE", True),
        ("float", b"impossible", b"0.5", False),
        ("float", b"0.3333333", b"0.33333333333", True),
        ("float", b"1.5e3", b"1500.0001", True),
        ("float", b"nan", b"nan", False),
        ("float", b"inf", b"inf", False),
        ("float", b"1000000007.0", b"1000000008", True),  # printed as a real number, so compared as one
        ("float", b"4.9999999", b"5", True),
        ("float", b"4.9999", b"5", False),
        ("float", b"1e-12", b"0", True),
        ("float", b"-0.0", b"0", True),
        ("float", b"1e-3", b"0", False),
        ("float", b"1e999", b"5", False),
        ("float", b"impossible", b"IMPOSSIBLE", True),
        ("float", b"5.", b"5", True),
        ("float", b"9" * 500, b"1.0", False),
        ("contains", b"1 2", b"", True),
        ("contains", b"a b\nend", b"end", True),
        ("contains", b"a b\nen", b"end", False),
        ("unordered", b"2 b\n1 a", b"1 a\n2 b", True),
        ("unordered", b"1 a\n1 a", b"1 a", False),
        ("unordered", b"a 1", b"1 a", False),
    ],
)
def test_cases(rule: str, output: bytes, expected: bytes, accepted: bool) -> None:
    assert matches(rule, output, expected) is accepted
