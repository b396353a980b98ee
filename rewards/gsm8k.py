"""Rewards for grade-school mathematics with answers in tags:

    <reasoning>
    ...
    </reasoning>
    <answer>
    42
    </answer>

Every function has TRL's signature; `correctness_reward` needs the column `answer`, the number as text (a whole gsm8k
solution with its `#### 42` works, too). The others look at the text alone:

    strict_format_reward   0.5 for exactly this layout, line breaks included
    soft_format_reward     0.5 for one block of each tag in this order, with any white space around them
    tag_count_reward       0.125 for each of the four tags that occurs exactly once, less for text after the end
    length_reward          up to 0.5: all of it to `FULL_LENGTH` words of reasoning, falling to none at `NO_LENGTH`
    repetition_penalty     0 to -0.5: the share of word 4-grams that were said before
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from rewards.code import completion_text
from rewards.format import MAX_CHARACTERS, blocks_in_order, last_block

TAGS = ("reasoning", "answer")
TAIL = 2000  # the answer stands at the end of a completion
FULL_LENGTH, NO_LENGTH = 150, 400  # words
NGRAM = 4
READ_FOR_SHAPE = 8000  # characters whose words are counted and compared

# Digits are ASCII and grouped by commas, if at all, in threes. The look-around keeps out parts of words, and a minus
# that stands between two numbers, as in 10%-12%.
_SIGN = r"(?<![\w.])(?!(?<=[%)])-)-?\$?-?"
_NUMBER = re.compile(_SIGN + r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,30})(?:\.[0-9]{1,30})?(?![0-9])", re.ASCII)


def parse_number(text: str) -> Decimal | None:
    """'$1,234.50' → 1234.50; a closing full stop or per cent sign does not matter. None for anything else."""
    found = _NUMBER.fullmatch(text.strip().rstrip(".%").strip())
    return _decimal(found.group()) if found else None


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def last_number(text: str) -> Decimal | None:
    """The last number that a text mentions, or None."""
    found = None
    for found in _NUMBER.finditer(text[-TAIL:]):  # noqa: B007
        pass
    return _decimal(found.group()) if found else None


def final_answer(solution: str) -> str:
    """The number after `####` in a gsm8k solution, without separators; a text without the marks is the answer
    itself."""
    answer = solution.rpartition("####")[2].strip()
    return answer.replace(",", "").replace("$", "").rstrip(".")


def extract_answer(completion: str) -> Decimal | None:
    """The last number in the last answer block, or of the whole completion where there is no block."""
    block = last_block(completion, "answer")
    return last_number(completion if block is None else block)


def is_correct(completion: str, answer: str) -> bool:
    """Whether a completion ends with the number of `answer`. An answer that is no number is never met."""
    wanted = parse_number(final_answer(answer))
    found = extract_answer(completion)
    return wanted is not None and found is not None and found == wanted


def correctness_reward(
    prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any], **columns: Any
) -> list[float]:
    """1 where the last number is the answer, else 0."""
    return [float(is_correct(completion_text(c), str(a))) for c, a in zip(completions, answer, strict=True)]


def strict_format_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """0.5 for the layout above to the letter: the tags alone on their lines, both blocks filled."""
    return [0.5 * _is_strict(completion_text(completion)) for completion in completions]


def _is_strict(text: str) -> bool:
    blocks = blocks_in_order(text, TAGS, separator="\n")
    return blocks is not None and all(b.startswith("\n") and b.endswith("\n") and b.strip() for b in blocks)


def soft_format_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """0.5 for one reasoning block and then one answer block, nothing else."""
    return [0.5 * (blocks_in_order(completion_text(completion), TAGS) is not None) for completion in completions]


def tag_count_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """0.125 for each tag that occurs exactly once, less 0.001 for each character after `</answer>`; at least 0."""
    return [_tag_count(completion_text(completion)) for completion in completions]


def _tag_count(text: str) -> float:
    if len(text) > MAX_CHARACTERS:
        return 0.0
    tags = [f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS]
    found = 0.125 * sum(text.count(tag) == 1 for tag in tags)
    after = len(text.rpartition("</answer>")[2].strip()) if "</answer>" in text else 0
    return max(0.0, found - 0.001 * after)


def length_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """0.5 up to `FULL_LENGTH` words, 0 from `NO_LENGTH` on, linear between them; 0 for an empty completion."""
    return [_length(completion_text(completion)) for completion in completions]


def _length(text: str) -> float:
    words = len(text[:READ_FOR_SHAPE].split())
    if not words or len(text) > READ_FOR_SHAPE:
        return 0.0
    return 0.5 * min(1.0, max(0.0, (NO_LENGTH - words) / (NO_LENGTH - FULL_LENGTH)))


def repetition_penalty(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """-0.5 times the share of 4-grams of words that occurred before, at the start of a long completion."""
    return [_repetition(completion_text(completion)) for completion in completions]


def _repetition(text: str) -> float:
    words = text[:READ_FOR_SHAPE].lower().split()[:1000]
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return -0.5 * (1 - len(set(grams)) / len(grams)) if grams else 0.0
