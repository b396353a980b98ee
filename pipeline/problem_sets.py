"""The problems of a run: training and held-out sets, from a JSON-lines file or the starter's generator."""

from __future__ import annotations

import random
from dataclasses import dataclass

from data.problems import read_problems
from pipeline.config import STARTER, ConfigError, RunConfig
from rewards.problem import Problem

HELD_OUT_SHARE = 0.1
STARTER_TRAIN_PROBLEMS = 2000
HELD_OUT_SEED = 1_000_003  # the held-out problems do not depend on the run's seed: runs stay comparable


@dataclass(frozen=True)
class ProblemSets:
    """`train` and `held_out` share no problem; for the starter they share no family either."""

    train: list[Problem]
    held_out: list[Problem]


def load_problem_sets(config: RunConfig) -> ProblemSets:
    """Read or generate both sets. A file without `eval_dataset` gives up a tenth of its problems for the held-out set.

    Raises `DatasetError` for a bad file and `ConfigError` for one too small to split.
    """
    assert config.eval_problems is not None and config.dataset is not None
    if config.dataset == STARTER:
        from data.starter.generator import problems

        train = problems("train", config.max_samples or STARTER_TRAIN_PROBLEMS, config.seed)
        held_out = problems("held_out", config.eval_problems, HELD_OUT_SEED)
        return ProblemSets(train, held_out)
    train = _gradable(read_problems(config.dataset), config.dataset)
    if config.eval_dataset is not None:
        held_out = _gradable(read_problems(config.eval_dataset), config.eval_dataset)
        ids = {problem.id for problem in held_out}
        train = [problem for problem in train if problem.id not in ids]
    else:
        random.Random(HELD_OUT_SEED).shuffle(train)
        count = max(1, round(len(train) * HELD_OUT_SHARE))
        held_out, train = train[:count], train[count:]
    if not train:
        raise ConfigError(
            f"--dataset {config.dataset}: no problem is left for training; give more, or an --eval-dataset"
        )
    return ProblemSets(train[: config.max_samples], held_out[: config.eval_problems])


def held_out_problems(config: RunConfig) -> list[Problem]:
    """The evaluation split of a run's configuration."""
    return load_problem_sets(config).held_out


def _gradable(problems: list[Problem], path: str) -> list[Problem]:
    kept = [problem for problem in problems if problem.tests]
    if not kept:
        raise ConfigError(f"dataset {path}: no problem has tests, so nothing could be graded")
    return kept
