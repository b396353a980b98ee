"""Advantages of a group's completions (GRPO, arXiv 2402.03300): how much better each is than its group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DEVIATION_FLOOR = 1e-4  # added to the standard deviation that advantages are divided by


def group_advantages(rewards: Tensor, group_size: int, scale: str) -> Tensor:
    """Advantages (B,) of rewards (B,) float32: each less the mean of its group of `group_size` rows.

    scale: whose standard deviation they are divided by: `group`, `batch`, or `none`. A reward of NaN counts for nothing
    and has the advantage 0, and so has every row of a group whose rewards are all equal.
    """
    groups = rewards.view(-1, group_size)
    advantages = rewards - torch.nanmean(groups, dim=1).repeat_interleave(group_size)
    if scale == "group":
        advantages = advantages / (known_deviation(groups).repeat_interleave(group_size) + DEVIATION_FLOOR)
    elif scale == "batch":
        advantages = advantages / (known_deviation(rewards) + DEVIATION_FLOOR)
    return without_equal_groups(advantages.nan_to_num(nan=0.0), rewards, group_size)


def without_equal_groups(advantages: Tensor, rewards: Tensor, group_size: int) -> Tensor:
    """Advantages (B,) with exact zeros where all rewards (B,) of a group are equal, leaving out those that are NaN.

    In float32 the mean of equal rewards can differ from them in the last bit, and dividing by a standard deviation of
    zero plus 1e-4 makes a visible advantage of that.
    """
    groups = rewards.view(-1, group_size)
    highest = groups.nan_to_num(nan=-torch.inf).amax(dim=1)
    lowest = groups.nan_to_num(nan=torch.inf).amin(dim=1)
    return advantages.masked_fill((highest <= lowest).repeat_interleave(group_size), 0.0)


def reward_tensor(totals: Sequence[float | None]) -> Tensor:
    """(B,) float32, NaN for None."""
    return torch.tensor([torch.nan if total is None else total for total in totals], dtype=torch.float32)


def known_deviation(values: Tensor) -> Tensor:
    """Standard deviation over the last dimension, with n − 1, of what is not NaN; NaN of fewer than two values."""
    count = (~values.isnan()).sum(dim=-1)
    variance = torch.nanmean((values - torch.nanmean(values, dim=-1, keepdim=True)) ** 2, dim=-1)
    return (variance * (count / (count - 1))).sqrt().where(count > 1, torch.nan)
