"""Rewards for Countdown: make an equation that reaches a target from given numbers, each used exactly once.

    format_reward     0 without `<think>...</think>\\n<answer>...</answer>`, 0.1 if the answer is not one line that
                      looks like an equation, else 1
    equation_reward   1 if the last `<answer>` uses every number once and equals the target, else 0

Both have TRL's signature and need the columns `nums` (a list of integers) and `target` (an integer). An answer is
`LHS = RHS` or the expression alone. It is parsed, never evaluated as code: + - * / and parentheses over the given
numbers, in exact fractions. A sign before a number, a division by zero, a power or a decimal point make the answer
wrong."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from rewards.code import completion_text
from rewards.format import blocks_in_order, last_block

MAX_ANSWER = 400  # characters; the longest sensible answer over ten numbers has about 100
MAX_DIGITS = 9  # of one number
TAGS = ("think", "answer")

_EXPRESSION = re.compile(r"[0-9+\-*/() \t]+", re.ASCII)
_EQUATION_LINE = re.compile(r"[+\-*/(). \t]*[0-9][0-9+\-*/(). \t]*=[+\-*/(). \t]*[0-9][0-9+\-*/(). \t]*", re.ASCII)
_RESULT = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


class ExpressionError(ValueError):
    """An expression that is not arithmetic over integers, or that divides by zero."""


def evaluate_expression(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression and the numbers it uses, from left to right.

    Raises `ExpressionError` for anything but + - * /, parentheses and non-negative integers of at most `MAX_DIGITS`
    digits, within `MAX_ANSWER` characters.
    """
    if len(text) > MAX_ANSWER or not _EXPRESSION.fullmatch(text):
        raise ExpressionError("not an arithmetic expression")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ExpressionError("not an arithmetic expression") from None
    numbers: list[int] = []
    return _value(tree, numbers), numbers


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    # Recursion is as deep as the expression nests, which the length of the text bounds.
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value < 10**MAX_DIGITS:
        numbers.append(node.value)
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise ExpressionError("only + - * / of numbers are allowed")
    left, right = _value(node.left, numbers), _value(node.right, numbers)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        if right == 0:
            raise ExpressionError("division by zero")
        return left / right
    raise ExpressionError("only + - * / are allowed")


def extract_answer(completion: str) -> str | None:
    """The text of the last answer block, or None when there is none or it is too long to be one."""
    answer = last_block(completion, "answer")
    return None if answer is None or len(answer) > MAX_ANSWER else answer.strip()


def is_solution(answer: str, nums: Iterable[int], target: int | float | str) -> bool:
    """Whether `answer` (`LHS = RHS`, or LHS alone) uses each of `nums` exactly once and equals `target`."""
    left, equals, right = answer.partition("=")
    wanted = Fraction(target)
    if equals and (not _RESULT.fullmatch(right.strip()) or Fraction(right.strip()) != wanted):
        return False
    try:
        value, used = evaluate_expression(left)
    except ExpressionError:
        return False
    return value == wanted and sorted(used) == sorted(nums)


def format_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """0, 0.1 or 1 for the form of each completion alone; the numbers are not looked at."""
    return [_format(completion_text(completion)) for completion in completions]


def _format(text: str) -> float:
    blocks = blocks_in_order(text, TAGS, separator="\n")
    if blocks is None:
        return 0.0
    answer = blocks[1].strip()
    looks_right = len(answer) <= MAX_ANSWER and _EQUATION_LINE.fullmatch(answer)
    return 1.0 if looks_right else 0.1


def equation_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    nums: Sequence[Sequence[int]],
    target: Sequence[int],
    **columns: Any,
) -> list[float]:
    """1 for each completion whose answer is a right equation, else 0."""
    rewards = []
    for completion, numbers, goal in zip(completions, nums, target, strict=True):
        answer = extract_answer(completion_text(completion))
        rewards.append(float(answer is not None and is_solution(answer, numbers, goal)))
    return rewards
