"""Advantages against their formula in float64."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.advantages import group_advantages, reward_tensor, without_equal_groups

REWARDS = st.one_of(st.none(), st.floats(-4, 4, width=32))


@given(totals=st.lists(REWARDS, min_size=4, max_size=24), scale=st.sampled_from(["group", "batch", "none"]))
def test_advantages_are_rewards_above_the_mean_of_the_group(totals: list[float | None], scale: str) -> None:
    size = 4
    totals = totals[: len(totals) // size * size]
    found = group_advantages(reward_tensor(totals), size, scale).tolist()
    every = [total for total in totals if total is not None]
    for start in range(0, len(totals), size):
        group = totals[start : start + size]
        known = [total for total in group if total is not None]
        spread = {"group": known, "batch": every, "none": []}[scale]
        divisor = 1.0 if scale == "none" else statistics.stdev(spread) + 1e-4 if len(spread) > 1 else math.nan
        for total, advantage in zip(group, found[start : start + size], strict=True):
            if total is None or min(known) == max(known):
                assert advantage == 0.0
            else:
                expected = (total - statistics.fmean(known)) / divisor
                assert advantage == pytest.approx(expected, rel=1e-3, abs=1e-2 if scale != "none" else 1e-6)


def test_groups_of_equal_rewards_get_no_advantage() -> None:
    reward = 0.7857142686843872  # a mean of sixteen of these differs from it in float32
    rewards = reward_tensor([reward] * 4 + [0.0, 1.0, 1.0, 1.0] + [None, 0.5, 0.5, 0.5] + [None] * 4)
    advantages = without_equal_groups(torch.full((16,), 6e-4), rewards, 4)
    assert advantages.tolist() == [0.0] * 4 + torch.full((4,), 6e-4).tolist() + [0.0] * 8
