"""Problems of the starter, made when they are needed: the same arguments give the same problems.

What a problem asks is its family and parameters. One in `RESERVED` of all such pairs, picked by a hash, is kept out of
the pretraining corpus; `problems` hands out only those. So no problem of training or evaluation is in the corpus, in
any wording.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Literal

from data.starter.authors import BY_NAME, program
from data.starter.families import FAMILIES, HELD_OUT_FAMILIES, TRAIN_FAMILIES
from data.starter.family import Family, Instance, make_instance, params_digest
from rewards.problem import Problem

__all__ = [
    "FAMILIES", "HELD_OUT_FAMILIES", "SPLITS", "TRAIN_FAMILIES", "draw_instance", "instances", "problems", "program",
]  # fmt: skip

SPLITS = {"train": TRAIN_FAMILIES, "held_out": HELD_OUT_FAMILIES}
RESERVED = 5


def draw_instance(family: Family, rng: Random, reserved: bool) -> Instance:
    """One problem of the family from the reserved part of its parameters, or from the rest."""
    while True:
        params = family.draw(rng)
        if (params_digest(family, params) % RESERVED == 0) == reserved:
            return make_instance(family, params, rng)


def instances(split: Literal["train", "held_out"], count: int, seed: int) -> list[Instance]:
    """`count` problems with distinct statements, the families taking turns. Same arguments, same problems."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the starter problems; use 'train' or 'held_out'")
    rng = Random(f"{split}/{seed}")
    found: list[Instance] = []
    seen: set[str] = set()
    while len(found) < count:
        for family in rng.sample(SPLITS[split], len(SPLITS[split])):
            instance = draw_instance(family, rng, reserved=True)
            while instance.problem.statement in seen:
                instance = draw_instance(family, rng, reserved=True)
            seen.add(instance.problem.statement)
            found.append(instance)
    return found[:count]


def problems(split: Literal["train", "held_out"], count: int, seed: int) -> list[Problem]:
    """`count` problems of the split's families, each with a right program; `Problem.source` is the family's name."""
    return [replace(instance.problem, solution=_right(instance)) for instance in instances(split, count, seed)]


def _right(instance: Instance) -> str:
    return program(instance, BY_NAME["steady"], Random(0))
