"""Cutting a scored batch: duplicates are summed, groups of equal rewards are silent."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.microbatch import distinct_rows, without_equal_groups


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 1000))
@settings(deadline=None)
def test_distinct_rows_keep_every_sum_at_its_first_row(contents: list[int], seed: int) -> None:
    ids = torch.tensor(contents).unsqueeze(1)
    advantages = torch.randn(len(contents), generator=torch.Generator().manual_seed(seed))
    first, summed = distinct_rows(torch.zeros_like(ids), ids, advantages)
    assert first.tolist() == sorted({contents.index(content) for content in contents})
    for content in set(contents):
        same = [i for i, other in enumerate(contents) if other == content]
        torch.testing.assert_close(summed[same[0]], advantages[same].sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summed.sum(), advantages.sum(), rtol=1e-4, atol=1e-4)


def test_groups_of_equal_rewards_get_no_advantage() -> None:
    reward = 0.7857142686843872  # a mean of sixteen of these differs from it in float32
    rewards: list[float | None] = [reward] * 4 + [0.0, 1.0, 1.0, 1.0] + [None, 0.5, 0.5, 0.5] + [None] * 4
    advantages = without_equal_groups(torch.full((16,), 6e-4), rewards, 4)
    assert advantages.tolist() == [0.0] * 4 + torch.full((4,), 6e-4).tolist() + [0.0] * 8
