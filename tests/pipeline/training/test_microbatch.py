"""Cutting a scored batch: duplicates of a group are summed, groups of equal rewards are silent, no loss changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config import LOSS_TYPES
from pipeline.training.microbatch import distinct_rows, micro_batches, spread_rows

MAX_LENGTH = 9


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30), st.integers(0, 1000))
@settings(deadline=None)
def test_distinct_rows_keep_every_sum_at_its_first_row(rows: list[tuple[int, int]], seed: int) -> None:
    """Rows are (group, completion); both decide the advantage here."""
    group, ids = torch.tensor(rows).unbind(dim=1)
    values = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))
    advantages = values[group, ids]
    first, summed, draws = distinct_rows(group, ids.unsqueeze(1), advantages)
    assert {i: int(n) for i, n in enumerate(draws) if n} == {i: rows.count(rows[i]) for i in first.tolist()}
    assert first.tolist() == sorted({rows.index(row) for row in rows})
    for row in set(rows):
        same = [i for i, other in enumerate(rows) if other == row]
        torch.testing.assert_close(summed[same[0]], advantages[same].sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summed.sum(), advantages.sum(), rtol=1e-4, atol=1e-4)


def policy_loss(loss_type: str, batch: dict[str, Any], *, sequence: bool) -> Tensor:
    """The losses as their papers have them, for ratios r of tokens or of whole sequences (GSPO, arXiv 2507.18071).

    −min(r A, clip(r, 0.8, 1.2) A), averaged over the tokens of a row and over rows (grpo, arXiv 2402.03300), over rows
    times the maximal length (dr_grpo, 2503.20783), over the tokens of the batch (bnpo), or over those of the whole
    step (dapo, 2503.14476); cispo (2506.13585) is −min(r, 5) A log p with r fixed.
    """
    mask, log_probs = batch["completion_mask"].double(), batch["log_probs"]
    log_ratio = log_probs - batch["old"]
    if sequence:
        log_ratio = ((log_ratio * mask).sum(dim=1) / mask.sum(dim=1)).unsqueeze(1).expand_as(mask)
    ratio, advantage = log_ratio.exp(), batch["advantages"].unsqueeze(1)
    if loss_type == "cispo":
        tokens = -ratio.clamp(max=5) * advantage * log_probs
    else:
        tokens = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    total = (tokens * mask).sum()
    return {
        "grpo": ((tokens * mask).sum(dim=1) / mask.sum(dim=1)).mean(),
        "dr_grpo": total / (len(mask) * MAX_LENGTH),
        "bnpo": total / mask.sum(),
        "dapo": total / batch["num_items_in_batch"],
        "cispo": total / batch["num_items_in_batch"],
    }[loss_type]


def scored_batch(seed: int, groups: int, size: int) -> dict[str, Any]:
    """Few different completions, all in every group, in random order; a group's reward of each is its own."""
    g = torch.Generator().manual_seed(seed)
    kinds = 3
    group = torch.arange(groups).repeat_interleave(size)[torch.randperm(groups * size, generator=g)]
    kind = torch.randint(0, kinds, (groups * size,), generator=g)
    lengths = torch.randint(1, MAX_LENGTH + 1, (kinds,), generator=g)
    mask = (torch.arange(MAX_LENGTH) < lengths.unsqueeze(1)).long()[kind]
    log_probs, old = (-3 * torch.rand(groups, kinds, MAX_LENGTH, generator=g, dtype=torch.float64) for _ in range(2))
    return {
        "group": group,
        "prompt_ids": group.unsqueeze(1).expand(-1, 2),
        "prompt_mask": torch.ones(groups * size, 2, dtype=torch.long),
        "completion_ids": torch.randint(5, 250, (kinds, MAX_LENGTH), generator=g)[kind] * mask,
        "completion_mask": mask,
        "advantages": torch.randn(groups, kinds, generator=g, dtype=torch.float64)[group, kind],
        "log_probs": log_probs[group, kind],
        "old": old[group, kind],
        "num_items_in_batch": mask.sum(),
    }


@pytest.mark.parametrize("sequence", [False, True], ids=["tokens", "sequences"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@given(seed=st.integers(0, 10_000), groups=st.integers(1, 3), size=st.integers(2, 6), budget=st.integers(5, 60))
@settings(deadline=None, max_examples=30)
def test_every_loss_of_the_parts_is_that_of_the_batch(
    loss_type: str, sequence: bool, seed: int, groups: int, size: int, budget: int
) -> None:
    batch = scored_batch(seed, groups, size)
    parts, share = micro_batches(batch, budget, loss_type, every_row=False)
    trained = (batch["advantages"] != 0) & batch["completion_mask"].any(dim=1)
    assert share == float(trained.sum()) / len(trained)
    distinct = set(zip(batch["group"].tolist(), map(tuple, batch["completion_ids"].tolist()), strict=True))
    assert sum(len(part["completion_ids"]) for part, _ in parts) == len(distinct)
    assert sum(int(part["draws"].sum()) for part, _ in parts) == len(trained)
    whole = policy_loss(loss_type, batch, sequence=sequence)
    cut = sum(weight * policy_loss(loss_type, part, sequence=sequence) for part, weight in parts)
    torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-12)


def test_groups_that_judge_a_completion_differently_are_not_added_up() -> None:
    """+1 and −0.5 at ratio 1.5: the first is clipped, the second has the gradient 0.75 in log r; added up, both would
    be clipped."""
    batch = {
        "group": torch.tensor([0, 1]),
        "prompt_ids": torch.tensor([[3], [4]]),
        "prompt_mask": torch.ones(2, 1, dtype=torch.long),
        "completion_ids": torch.tensor([[7], [7]]),
        "completion_mask": torch.ones(2, 1, dtype=torch.long),
        "advantages": torch.tensor([1.0, -0.5], dtype=torch.float64),
        "old": torch.zeros(2, 1, dtype=torch.float64),
        "num_items_in_batch": torch.tensor(2),
    }
    for group in ([0, 1], [0, 0]):  # nor in one group, should a reward be random
        log_probs = torch.full((2, 1), 1.5, dtype=torch.float64).log().requires_grad_()
        changed = batch | {"group": torch.tensor(group), "log_probs": log_probs}
        parts, _ = micro_batches(changed, 100, "dapo", every_row=False)
        loss = 2 * torch.stack([weight * policy_loss("dapo", part, sequence=False) for part, weight in parts]).sum()
        loss.backward()
        assert loss.item() == pytest.approx(-(1.2 - 0.75)) and log_probs.grad is not None
        assert float(log_probs.grad.sum()) == pytest.approx(0.75)


@given(groups=st.integers(1, 32), size=st.integers(1, 40), wanted=st.integers(1, 64))
def test_spread_rows_come_from_all_groups_alike(groups: int, size: int, wanted: int) -> None:
    rows = spread_rows(groups * size, wanted)
    assert len(set(rows)) == len(rows) == min(wanted, groups * size) and rows == sorted(rows)
    counts = [sum(row // size == group for row in rows) for group in range(groups)]
    assert max(counts) - min(counts) <= 1 and (wanted < groups or min(counts) >= 1)
