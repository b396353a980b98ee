"""Warm-up of the step's length, on top of whatever schedule a run has."""

from __future__ import annotations

from torch.optim.lr_scheduler import LambdaLR


def warm_up_share(step: int, steps: int) -> float:
    """The share of its length that a step (0 for the first) has with a warm-up over `steps` steps: 1 / (steps + 1),
    2 / (steps + 1), ..., 1. Unlike transformers' it does not begin with 0, which would waste a step's rollouts."""
    return min(1.0, (step + 1) / (steps + 1))


def with_warm_up(scheduler: LambdaLR, steps: int) -> LambdaLR:
    """The schedule times `warm_up_share`. With `KLAdam`, whose rate is a factor of the length, a share s of the length
    is s² of the KL."""
    factor = scheduler.lr_lambdas[0]  # one for all groups of parameters
    return LambdaLR(scheduler.optimizer, lambda step: warm_up_share(step, steps) * factor(step))
