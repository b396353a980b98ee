"""Who draws what: nothing is lost or drawn twice, seats are kept to, and replicas end with about as many tokens."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.scale.board import RESERVE, Board, Hand, Work


def works(first: int, groups: int, size: int) -> list[Work]:
    return [Work(tuple(range(first + g * size, first + (g + 1) * size)), [g]) for g in range(groups)]


@given(
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(1, 4),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_every_row_is_drawn_once_and_seats_are_kept_to(
    groups: int, more: int, size: int, seats: list[int], chance: random.Random
) -> None:
    board, hands = Board(10.0), [Hand(count) for count in seats]
    board.add(works(0, groups, size))
    wanted, drawn = groups * size, []
    while True:
        board.deal(hands)
        for hand in hands:
            assert len(hand.rows) <= max(size, hand.seats + hand.seats // RESERVE)
        held = [(hand, row) for hand in hands for row in hand.rows]
        if not held:
            break
        hand, row = chance.choice(held)
        if len(hands) > 1 and chance.random() < 0.1:  # a replica dies
            board.give_back(hand)
            hands.remove(hand)
            continue
        board.drawn(hand, row, chance.randint(1, 50))
        drawn.append(row)
        if more and chance.random() < 0.2:  # dynamic sampling
            board.add(works(wanted, 1, size))
            wanted, more = wanted + size, more - 1
    assert sorted(drawn) == list(range(wanted))


def run(seats: int, steps: int, replicas: int = 4, spread: float = 10.0) -> list[int]:
    """Tokens of each replica after a run whose lengths differ `spread`-fold; all draw a token of every row in turn."""
    chance, loads = random.Random(0), [0] * replicas
    for _ in range(steps):
        board, hands = Board(100.0), [Hand(seats, load) for load in loads]
        board.add(works(0, 32, 8))
        usual = [20 * spread ** chance.random() for _ in range(32)]  # groups differ as well as rows
        left = [max(1, round(usual[row // 8] * chance.uniform(0.7, 1.3))) for row in range(256)]
        length = list(left)
        while True:
            board.deal(hands)
            held = [(hand, row) for hand in hands for row in hand.rows]
            if not held:
                break
            step = min(left[row] for _, row in held)
            for hand, row in held:
                left[row] -= step
                if not left[row]:
                    board.drawn(hand, row, length[row])
        loads = [hand.tokens for hand in hands]
    return loads


def test_tokens_of_replicas_differ_by_less_than_five_percent_over_a_run() -> None:
    for seats in (16, 512):  # groups wait for seats; all are dealt at once
        loads = run(seats, 28)  # as many steps as the starter is trained
        assert max(loads) - min(loads) < 0.05 * sum(loads) / len(loads), seats
