"""Problems of the starter, made when they are needed: the same arguments give the same problems.

What a problem asks is its family and parameters. One in `RESERVED` of all such pairs, picked by a hash, is kept out of
the pretraining corpus; `problems` hands out only those. So no problem of training or evaluation is in the corpus, in
any wording. In the same way held-out problems for one purpose (`data/purposes.py`) ask nothing that those for another
ask. The project's defaults were chosen on the first `EARLIER_PROBLEMS` that `EARLIER_SEED` gives, before purposes were
told apart: what those ask is for tuning only.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Literal

from data import purposes
from data.starter.authors import program
from data.starter.families import FAMILIES, HELD_OUT_FAMILIES, TRAIN_FAMILIES
from data.starter.family import Family, Instance, make_instance, params_digest
from rewards.problem import Problem

__all__ = [
    "FAMILIES", "HELD_OUT_FAMILIES", "SPLITS", "TRAIN_FAMILIES", "draw_instance", "instances", "problems", "program",
]  # fmt: skip

SPLITS = {"train": TRAIN_FAMILIES, "held_out": HELD_OUT_FAMILIES}
RESERVED = 5
EARLIER_SEED, EARLIER_PROBLEMS = 1_000_003, 1024


def draw_instance(family: Family, rng: Random, reserved: bool, purpose: str | None = None) -> Instance:
    """One problem of the family from the reserved part of its parameters, or of that for a purpose, or from the
    rest."""
    while True:
        params = family.draw(rng)
        digest = params_digest(family, params)
        if (digest % RESERVED == 0) == reserved and (purpose is None or purpose == _purpose_of(digest)):
            return make_instance(family, params, rng)


def _purpose_of(digest: int) -> str:
    return "tuning" if digest in _earlier() else purposes.purpose_of(digest // RESERVED)


@cache
def _earlier() -> frozenset[int]:
    """What was asked by the problems on which the defaults were chosen."""
    return frozenset(params_digest(i.family, i.params) for i in instances("held_out", EARLIER_PROBLEMS, EARLIER_SEED))


def instances(
    split: Literal["train", "held_out"], count: int, seed: int, purpose: str | None = None
) -> list[Instance]:
    """`count` problems with distinct statements, the families taking turns. Same arguments, same problems, and more are
    a continuation of fewer. purpose: of held-out problems; None for those of all purposes."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the starter problems; use 'train' or 'held_out'")
    if purpose not in (None, *purposes.PURPOSES):
        raise ValueError(f"unknown purpose {purpose!r}; use one of {', '.join(purposes.PURPOSES)}")
    rng = Random(f"{split}/{seed}")
    found: list[Instance] = []
    seen: set[str] = set()
    while len(found) < count:
        for family in rng.sample(SPLITS[split], len(SPLITS[split])):
            instance = draw_instance(family, rng, reserved=True, purpose=purpose)
            while instance.problem.statement in seen:
                instance = draw_instance(family, rng, reserved=True, purpose=purpose)
            seen.add(instance.problem.statement)
            found.append(instance)
    return found[:count]


def problems(
    split: Literal["train", "held_out"], count: int, seed: int, purpose: str | None = None
) -> list[Problem]:
    """`count` problems of the split's families; `Problem.source` and `Problem.cluster` are the family's name."""
    return [instance.problem for instance in instances(split, count, seed, purpose)]
