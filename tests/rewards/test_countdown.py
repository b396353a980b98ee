"""Countdown rewards as a table of cases, and what they cost on hostile texts."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.countdown import ExpressionError, equation_reward, evaluate_expression, format_reward

NUMS, TARGET = [44, 19, 35], 98
MEGABYTE = 1_000_000


def wrapped(answer: str, thought: str = "44 + 19 + 35") -> str:
    return f"<think>{thought}</think>\n<answer>{answer}</answer>"


def rewards(completion: str, nums: list[int] = NUMS, target: int = TARGET) -> tuple[float, float]:
    (form,) = format_reward([""], [completion])
    (equation,) = equation_reward([""], [completion], nums=[nums], target=[target])
    return form, equation


GOOD = "44 + 19 + 35 = 98"
CASES = {
    "right": (wrapped(GOOD), (1.0, 1.0)),
    "white space around": (f"\n {wrapped(GOOD)} \n", (1.0, 1.0)),
    "an empty thought": (wrapped(GOOD, ""), (1.0, 1.0)),
    "answer on its own line": (wrapped(f"\n{GOOD}\n"), (1.0, 1.0)),
    "expression alone": (wrapped("44 + 19 + 35"), (0.1, 1.0)),
    "parentheses": (wrapped("(44 + (19 + (35))) = 98"), (1.0, 1.0)),
    "result as a real number": (wrapped("44 + 19 + 35 = 98.0"), (1.0, 1.0)),
    "wrong result": (wrapped("44 + 19 - 35 = 98"), (1.0, 0.0)),
    "wrong right side": (wrapped("44 + 19 + 35 = 97"), (1.0, 0.0)),
    "right side nearly right": (wrapped("44 + 19 + 35 = 98.000001"), (1.0, 0.0)),
    "a number missing": (wrapped("44 + 54 = 98"), (1.0, 0.0)),
    "a number twice": (wrapped("44 + 19 + 35 + 44 - 44 = 98"), (1.0, 0.0)),
    "another number": (wrapped("98 + 0 * 44 * 19 * 35 = 98"), (1.0, 0.0)),
    "numbers in another order": (wrapped("35 + 44 + 19 = 98"), (1.0, 1.0)),
    "two equals signs": (wrapped("44 + 19 + 35 = 98 = 98"), (0.1, 0.0)),
    "equation the wrong way round": (wrapped("98 = 44 + 19 + 35"), (1.0, 0.0)),
    "two lines": (wrapped(f"{GOOD}\n{GOOD}"), (0.1, 0.0)),
    "words in the answer": (wrapped("the answer is 44 + 19 + 35 = 98"), (0.1, 0.0)),
    "empty answer": (wrapped(""), (0.1, 0.0)),
    "no tags": (GOOD, (0.0, 0.0)),
    "no thought": (f"<answer>{GOOD}</answer>", (0.0, 1.0)),
    "text before": (f"Sure! {wrapped(GOOD)}", (0.0, 1.0)),
    "text behind": (f"{wrapped(GOOD)} Done.", (0.0, 1.0)),
    "no line break between": (wrapped(GOOD).replace("\n", ""), (0.0, 1.0)),
    "two line breaks between": (wrapped(GOOD).replace("\n", "\n\n"), (0.0, 1.0)),
    "answer first": (f"<answer>{GOOD}</answer>\n<think>x</think>", (0.0, 1.0)),
    "answer never closed": (f"<think>x</think>\n<answer>{GOOD}", (0.0, 0.0)),
    "closed before opened": (f"</answer>{GOOD}<answer>", (0.0, 0.0)),
    "upper case tags": (wrapped(GOOD).upper(), (0.0, 0.0)),
    "two answers, the last right": (wrapped("1 = 1") + f"\n<answer>{GOOD}</answer>", (0.0, 1.0)),
    "two answers, the last wrong": (wrapped(GOOD) + "\n<answer>1 = 1</answer>", (0.0, 0.0)),
    "nested answers": (wrapped(f"<answer>{GOOD}</answer>"), (0.0, 0.0)),
    "nested thoughts": (wrapped(GOOD, "<think>x</think>"), (0.0, 1.0)),
    "a draft in the thought": (wrapped(GOOD, "maybe <answer>1</answer>"), (0.0, 1.0)),
    "power tower": (wrapped("99**99**99 = 98"), (1.0, 0.0)),
    "power": (wrapped("44**19**35"), (0.1, 0.0)),
    "floor division": (wrapped("44//19 + 35 = 98"), (1.0, 0.0)),
    "call": (wrapped("__import__('os').system('id')"), (0.1, 0.0)),
    "names": (wrapped("nums[0] + target"), (0.1, 0.0)),
    "unicode digits": (wrapped("٤٤ + ١٩ + ٣٥ = ٩٨"), (0.1, 0.0)),
    "full-width digits": (wrapped("４４ + １９ + ３５ = 98"), (0.1, 0.0)),
    "unicode minus": (wrapped("44 − 19 = 98"), (0.1, 0.0)),
    "scientific": (wrapped("44e0 + 19 + 35 = 98"), (0.1, 0.0)),
    "underscores": (wrapped("4_4 + 19 + 35 = 98"), (0.1, 0.0)),
    "leading zeros": (wrapped("044 + 19 + 35 = 98"), (1.0, 0.0)),
    "a sign before a number": (wrapped("44 + 19 - -35 = 98"), (1.0, 0.0)),
    "decimals": (wrapped("44.0 + 19 + 35 = 98"), (1.0, 0.0)),
    "division by zero": (wrapped("44 / (19 - 19) = 98"), (1.0, 0.0)),
    "adjacent parentheses": (wrapped("(44)(19)(35) = 98"), (1.0, 0.0)),
    "unbalanced": (wrapped("((44 + 19 + 35 = 98"), (1.0, 0.0)),
    "huge number": (wrapped("9" * 300 + " = 98"), (1.0, 0.0)),
    "huge right side": (wrapped("44 + 19 + 35 = " + "9" * 300), (1.0, 0.0)),
    "deep nesting": (wrapped("(" * 190 + "44" + ")" * 190 + " = 98"), (1.0, 0.0)),
    "comma": (wrapped("44, 19, 35 = 98"), (0.1, 0.0)),
    "an equals sign alone": (wrapped("="), (0.1, 0.0)),
    "nothing on the left": (wrapped("() = 98"), (0.1, 0.0)),
    "empty": ("", (0.0, 0.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    completion, wanted = CASES[name]
    assert rewards(completion) == wanted
    assert format_reward([""], [[{"role": "assistant", "content": completion}]]) == [wanted[0]]


def test_division_is_exact() -> None:
    assert rewards(wrapped("8 / (3 - 8 / 3) = 24"), [3, 3, 8, 8], 24) == (1.0, 1.0)
    assert rewards(wrapped("8 / (3 - 8 / 3) = 24"), [3, 8, 8], 24) == (1.0, 0.0)
    assert rewards(wrapped("1 / 3 * 3 = 1"), [1, 3, 3], 1) == (1.0, 1.0)


def test_many_completions_keep_their_columns() -> None:
    found = equation_reward(
        ["", ""], [wrapped("1 + 2"), wrapped("1 + 2")], nums=[[1, 2], [1, 2]], target=[3, 4], trainer_state=None
    )
    assert found == [1.0, 0.0]


HOSTILE = {
    "letters": "a" * MEGABYTE,
    "opening tags": "<answer>" * (MEGABYTE // 8),
    "closing tags": "</answer>" * (MEGABYTE // 9),
    "thoughts": "<think>" * (MEGABYTE // 7),
    "half tags": "<answer" * (MEGABYTE // 7),
    "angles": "<" * MEGABYTE,
    "long answer": wrapped("1+" * (MEGABYTE // 2)),
    "long thought": wrapped(GOOD, "x " * (MEGABYTE // 2)),
    "parentheses": wrapped("(" * MEGABYTE),
    "power tower": wrapped("99**" * 60 + "99"),
    "spaces": " " * MEGABYTE,
    "line breaks": "\n" * MEGABYTE,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_cost_of_hostile_texts(name: str) -> None:
    """1 ms a completion on an idle core; the bound here leaves room for a busy machine."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        found = rewards(HOSTILE[name])
        times.append(time.thread_time() - start)
    assert min(times) < 0.004, f"{min(times) * 1e3:.2f} ms"
    assert found[1] == float(name == "long thought")


@given(st.text(alphabet="0123456789+-*/() .=<>answer", max_size=300))
def test_any_text_is_judged(text: str) -> None:
    form, equation = rewards(wrapped(text))
    assert form in (0.0, 0.1, 1.0) and equation in (0.0, 1.0)


NUMBERS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=6,
)


@given(NUMBERS)
def test_values_agree_with_exact_arithmetic(expression: str) -> None:
    import re

    exact = re.sub(r"\d+", lambda found: f"Fraction({found[0]})", expression)
    try:
        wanted = eval(exact, {"Fraction": Fraction})  # of our own making
    except ZeroDivisionError:
        with pytest.raises(ExpressionError):
            evaluate_expression(expression)
        return
    value, used = evaluate_expression(expression)
    assert value == wanted and used == [int(n) for n in re.findall(r"\d+", expression)]
