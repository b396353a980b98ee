"""The starter's training problems with right programs of many styles, to imitate in supervised training."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from data.starter.authors import AUTHORS, program
from data.starter.generator import instances
from rewards.problem import Problem


def worked_problems(count: int, seed: int) -> list[Problem]:
    """`count` training problems, each with a program by a random one of the careful authors."""
    rng = Random(f"sft/{seed}")
    careful = [author for author in AUTHORS if author.careful]
    return [
        replace(instance.problem, solution=program(instance, rng.choice(careful), rng, faulty=False))
        for instance in instances("train", count, seed)
    ]
