"""Who draws which group: a free seat pulls, and of several that are free the one that has drawn the fewest tokens.

A generation that fits into the seats is dealt out whole when it begins, for a completion that starts late ends late.
What does not fit waits, and goes to whoever's rows end. Loads are counted over the whole run, in tokens and not in
groups, so what chance gives one replica in a step is made up for in the next. Pure: no replica is touched here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from rewards.problem import Problem

RESERVE = 8  # one in so many seats is filled ahead, so that a row that ends is followed at once


@dataclass(frozen=True, eq=False)
class Work:
    """A group to be drawn: the numbers of its completions, their prompt, and their problem where it is graded."""

    rows: tuple[int, ...]
    prompt: list[int]
    problem: Problem | None = None


@dataclass(eq=False)
class Hand:
    """What one replica holds in a generation. seats: completions that it draws at a time. tokens: drawn in the run."""

    seats: int
    tokens: int = 0
    rows: dict[int, Work] = field(default_factory=dict)  # held and not drawn yet, by number


class Board:
    """Groups that wait, and who holds the others. expected: tokens of a completion, a first guess."""

    def __init__(self, expected: float) -> None:
        self.waiting: deque[Work] = deque()
        self._rows, self._tokens = 1, expected

    def add(self, works: Iterable[Work]) -> None:
        self.waiting.extend(works)

    @property
    def expected(self) -> float:
        """Tokens of a completion, by those drawn so far."""
        return self._tokens / self._rows

    def load(self, hand: Hand) -> float:
        """Tokens that a replica has drawn, and those that it is expected to draw of what it holds."""
        return hand.tokens + len(hand.rows) * self.expected

    def deal(self, hands: list[Hand]) -> list[tuple[Hand, Work]]:
        """Give out what fits into free seats; a group larger than all seats goes to one who holds nothing."""
        dealt = []
        while self.waiting:
            size = len(self.waiting[0].rows)
            free = [h for h in hands if not h.rows or len(h.rows) + size <= h.seats + h.seats // RESERVE]
            if not free:
                break
            hand, work = min(free, key=self.load), self.waiting.popleft()
            hand.rows |= dict.fromkeys(work.rows, work)
            dealt.append((hand, work))
        return dealt

    def drawn(self, hand: Hand, row: int, tokens: int) -> None:
        """Take that a row is there."""
        del hand.rows[row]
        hand.tokens += tokens
        self._rows += 1
        self._tokens += tokens

    def give_back(self, hand: Hand) -> int:
        """Put what a lost replica holds in front of what waits; returns how many rows that is."""
        lost: dict[int, list[int]] = {}
        works = {id(work): work for work in hand.rows.values()}
        for row, work in hand.rows.items():
            lost.setdefault(id(work), []).append(row)
        count = len(hand.rows)
        hand.rows.clear()
        self.waiting.extendleft(Work(tuple(rows), works[key].prompt, works[key].problem) for key, rows in lost.items())
        return count
