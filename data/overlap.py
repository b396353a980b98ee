"""Which problems are the same: normalised hashes for copies, 13-grams of words for texts that share a passage."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from rewards.problem import Problem

NGRAM = 13
COMMON = 10  # a 13-gram found in more problems than this is a phrase of the trade ("the first line contains ...")

# A word is a run of letters or digits; every Chinese, Japanese or Korean character is a word of its own.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def words(text: str) -> list[str]:
    """The words of a text, regardless of case, width and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def fingerprint(problem: Problem) -> str:
    """The same for copies of a problem. Numbers decide for Countdown, whose statement may list them in any order."""
    text = " ".join(words(problem.statement))
    if problem.numbers:
        text = f"{problem.answer} {sorted(problem.numbers)}"
    return hashlib.sha256(text.encode()).hexdigest()


def grams(problem: Problem) -> set[int]:
    """Hashes of the 13-grams of the statement; of a shorter statement, the whole. Empty for Countdown."""
    if problem.numbers:
        return set()
    found = words(problem.statement)
    if len(found) < NGRAM:
        return {hash(tuple(found))} if found else set()
    return {hash(tuple(found[i : i + NGRAM])) for i in range(len(found) - NGRAM + 1)}


def shared_grams(all_grams: Sequence[set[int]]) -> list[set[int]]:
    """Each set without the 13-grams that more than `COMMON` of the sets hold."""
    counts = Counter(gram for found in all_grams for gram in found)
    return [{gram for gram in found if counts[gram] <= COMMON} for found in all_grams]


def groups(problems: Sequence[Problem]) -> list[int]:
    """A group's number for each problem; problems that share a fingerprint or an uncommon 13-gram are in one group."""
    parent = list(range(len(problems)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[int | str, int] = {}
    for index, (problem, found) in enumerate(zip(problems, shared_grams([grams(p) for p in problems]), strict=True)):
        keys: Iterable[int | str] = [fingerprint(problem), *found]
        for key in keys:
            parent[root(index)] = root(first.setdefault(key, index))
    return [root(index) for index in range(len(problems))]
