"""All families of starter problems, and their split.

The split is by whole families: RL trains on problems of the train families, evaluation uses the held-out ones only.
"""

from __future__ import annotations

from data.starter.families import arithmetic, geometry, integers, lists, sequences, simulation, strings
from data.starter.family import Family

FAMILIES: tuple[Family, ...] = (
    *arithmetic.FAMILIES,
    *integers.FAMILIES,
    *sequences.FAMILIES,
    *lists.FAMILIES,
    *strings.FAMILIES,
    *simulation.FAMILIES,
    *geometry.FAMILIES,
)

_HELD_OUT = {
    "boxes", "power_mod", "quadratic", "two_offers",
    "extreme", "longest_streak", "weighted_sum", "conditional_count",
    "rises", "two_columns",
    "letter_score", "word_hash",
    "lift", "match_score",
    "frame", "overlap",
}  # fmt: skip

TRAIN_FAMILIES: tuple[Family, ...] = tuple(f for f in FAMILIES if f.name not in _HELD_OUT)
HELD_OUT_FAMILIES: tuple[Family, ...] = tuple(f for f in FAMILIES if f.name in _HELD_OUT)
