"""gsm8k rewards as tables of cases, and what they cost on hostile texts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import gsm8k
from rewards.gsm8k import (
    correctness_reward,
    final_answer,
    last_number,
    length_reward,
    parse_number,
    repetition_penalty,
    soft_format_reward,
    strict_format_reward,
    tag_count_reward,
)

MEGABYTE = 1_000_000


def layout(answer: str, reasoning: str = "40 and 2 make 42.") -> str:
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


RIGHT = layout("42")
# name: completion, (strict, soft, tags, correct) for the answer 42
CASES = {
    "right": (RIGHT, (0.5, 0.5, 0.5, 1.0)),
    "white space around": (f"\n{RIGHT}\n", (0.5, 0.5, 0.5, 1.0)),
    "wrong": (layout("41"), (0.5, 0.5, 0.5, 0.0)),
    "one line": ("<reasoning>x</reasoning><answer>42</answer>", (0.0, 0.5, 0.5, 1.0)),
    "blank lines between": (RIGHT.replace("</reasoning>\n", "</reasoning>\n\n\n"), (0.0, 0.5, 0.5, 1.0)),
    "empty reasoning": (layout("42", ""), (0.0, 0.5, 0.5, 1.0)),
    "text before": (f"Well, {RIGHT}", (0.0, 0.0, 0.5, 1.0)),
    "text behind": (f"{RIGHT}abc", (0.0, 0.0, 0.497, 1.0)),
    "another order": ("<answer>\n42\n</answer>\n<reasoning>\nx\n</reasoning>", (0.0, 0.0, 0.474, 1.0)),
    "no tags": ("The answer is 42.", (0.0, 0.0, 0.0, 1.0)),
    "no tags, wrong": ("The answer is 42, or 43", (0.0, 0.0, 0.0, 0.0)),
    "answer only": ("<answer>42</answer>", (0.0, 0.0, 0.25, 1.0)),
    "never closed": ("<reasoning>\nx\n</reasoning>\n<answer>\n42", (0.0, 0.0, 0.375, 1.0)),
    "two answers": (f"{RIGHT}\n<answer>\n43\n</answer>", (0.0, 0.0, 0.25, 0.0)),
    "nested tags": (layout("<answer>42</answer>"), (0.0, 0.0, 0.25, 1.0)),
    "empty answer": (layout(""), (0.0, 0.5, 0.5, 0.0)),
    "number only in the reasoning": (layout("forty-two", "42"), (0.5, 0.5, 0.5, 0.0)),
    "unicode digits": (layout("٤٢"), (0.5, 0.5, 0.5, 0.0)),
    "full-width digits": (layout("４２"), (0.5, 0.5, 0.5, 0.0)),
    "superscript": (layout("4²"), (0.5, 0.5, 0.5, 0.0)),
    "money": (layout("$42.00"), (0.5, 0.5, 0.5, 1.0)),
    "unit": (layout("42 apples"), (0.5, 0.5, 0.5, 1.0)),
    "per cent": (layout("42%"), (0.5, 0.5, 0.5, 1.0)),
    "negative": (layout("-42"), (0.5, 0.5, 0.5, 0.0)),
    "power tower": (layout("99**99**99"), (0.5, 0.5, 0.5, 0.0)),
    "equation": (layout("6 * 7 = 42"), (0.5, 0.5, 0.5, 1.0)),
    "infinity": (layout("inf"), (0.5, 0.5, 0.5, 0.0)),
    "not a number": (layout("nan"), (0.5, 0.5, 0.5, 0.0)),
    "empty": ("", (0.0, 0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    completion, wanted = CASES[name]
    for form in (completion, [{"role": "assistant", "content": completion}]):
        found = (
            *strict_format_reward([""], [form]),
            *soft_format_reward([""], [form]),
            *tag_count_reward([""], [form]),
            *correctness_reward([""], [form], answer=["42"]),
        )
        assert found == pytest.approx(wanted)


@pytest.mark.parametrize(
    "text, number",
    [
        ("1,234", "1234"),
        ("12,34", "34"),
        ("1,234,567.5", "1234567.5"),
        ("3.50", "3.5"),
        ("-7", "-7"),
        ("5-3", "3"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("x2", None),
        ("v1.5", None),
        ("2 or 3.", "3"),
        ("10/4", "4"),
        ("$6,000.", "6000"),
        ("", None),
        ("1e5", "1"),
        ("2023 and 007", "7"),
        ("0.5", "0.5"),
        ("no number", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    found = last_number(text)
    assert (found is None) if number is None else (found is not None and found == parse_number(number))


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from(["{}", "{:,}", "{}.5", "${}", "{}%"]))
def test_a_minus_is_a_sign_or_stands_between_two_numbers(a: int, b: int, form: str) -> None:
    first, second = form.format(a), form.format(b)
    number = parse_number(second)
    assert number is not None
    for text in (f"{first}-{second}", f"{first} - {second}", f"({first})-{second}"):
        assert last_number(text) == number
    for text in (f"-{second}", f"{first}, -{second}", f"{first} or (-{second})", f"{first} = -{second}"):
        assert last_number(text) == -number


@pytest.mark.parametrize(
    "solution, answer",
    [
        ("a\n#### 6,000", "6000"),
        ("#### $12", "12"),
        ("#### -3", "-3"),
        ("18", "18"),
        ("#### 5.", "5"),
        ("#### 1\n#### 2", "2"),
    ],
)
def test_final_answer(solution: str, answer: str) -> None:
    assert final_answer(solution) == answer
    assert correctness_reward([""], [layout(answer)], answer=[solution]) == [1.0]


def test_an_answer_that_is_no_number_is_never_met() -> None:
    assert correctness_reward(["", ""], ["", "x"], answer=["", "x"]) == [0.0, 0.0]


def test_shape_of_the_text() -> None:
    short, middle, long = ("word " * n for n in (50, 275, 500))
    assert length_reward(["", "", "", ""], [short, middle, long, ""]) == [0.5, pytest.approx(0.25), 0.0, 0.0]
    fresh = " ".join(f"w{i}" for i in range(100))
    assert repetition_penalty(["", "", ""], [fresh, "again " * 100, "too short"]) == [
        0.0,
        pytest.approx(-0.5, abs=0.01),
        0.0,
    ]


@given(st.text(alphabet="again and so on", min_size=0, max_size=400))
def test_bounds(text: str) -> None:
    assert -0.5 <= repetition_penalty([""], [text])[0] <= 0
    assert 0 <= length_reward([""], [text])[0] <= 0.5
    assert 0 <= tag_count_reward([""], [text])[0] <= 0.5


HOSTILE = {
    "letters": "a" * MEGABYTE,
    "words": "word " * (MEGABYTE // 5),
    "digits": "9" * MEGABYTE,
    "numbers": "9 " * (MEGABYTE // 2),
    "commas": "1,000" * (MEGABYTE // 5),
    "opening tags": "<answer>" * (MEGABYTE // 8),
    "closing tags": "</answer>" * (MEGABYTE // 9),
    "half tags": "<reasoning" * (MEGABYTE // 10),
    "long reasoning": layout("42", "x " * (MEGABYTE // 2)),
    "long answer": layout("4" * MEGABYTE),
    "signs": "-$" * (MEGABYTE // 2),
    "spaces": " " * MEGABYTE,
    "at the limit": layout("42", "because " * 8_000),
}
FUNCTIONS = (
    "strict_format_reward",
    "soft_format_reward",
    "tag_count_reward",
    "correctness_reward",
    "length_reward",
    "repetition_penalty",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_cost_of_hostile_texts(name: str) -> None:
    """1 ms a completion for all six on an idle core; the bound here leaves room for a busy machine."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        for function in FUNCTIONS:
            getattr(gsm8k, function)([""], [HOSTILE[name]], answer=["42"])
        times.append(time.thread_time() - start)
    assert min(times) < 0.005, f"{min(times) * 1e3:.2f} ms"
