"""Shares of a batch: their gradients add up to that of the whole, whatever the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.scale.shares import shares_of
from pipeline.scale.wire import Found, Share, Vector, total_gradient
from pipeline.training.distance import Distance
from pipeline.training.kl_step import KLAdam
from pipeline.training.trl_hooks import trl_batch
from rewards.problem import Problem
from tests.pipeline.training.tiny_trainer import tiny_trainer

PROBLEMS = [Problem(name, f"{name}?" * n, answer="1") for n, name in enumerate("abcde", start=1)]
LOSSES: list[dict[str, Any]] = [
    {"loss_type": "dapo"},
    {"loss_type": "grpo", "lr": "0.1"},
    {"loss_type": "bnpo"},
    {"loss_type": "dr_grpo", "beta": 0.1},
    {"loss_type": "cispo", "entropy_bonus": 0.01},
    {"loss_type": "dapo", "num_iterations": 2},
]


@pytest.mark.parametrize("settings", LOSSES, ids=lambda s: "-".join(map(str, s.values())))
def test_gradients_of_shares_add_up(tiny_model_folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Recorded completions, trained whole and in two and three shares, in one of which a prompt has two groups."""
    from pipeline.training.roles import ReplicaTrainer

    driver = tiny_trainer(tiny_model_folder, tmp_path, problems=PROBLEMS, prompts_per_step=6, **settings)
    trainer = ReplicaTrainer(driver.sampler.policy, driver.run_config, driver.folder.path)
    rollouts = driver.roll_out([row for row in (0, 1, 2, 3, 4, 2) for _ in range(4)])
    batch = trl_batch(rollouts, 0, torch.device("cpu"))
    whole = trainer.found(batch, 0)
    for count in (2, 3):
        vector = Vector.of(trainer.bank.v, trainer.bank)
        shares = shares_of(batch, count, every_row=trainer.every_row)
        assert len(shares) == count and sum(len(share["group"]) for share in shares) == len(batch["group"])
        found = [trainer.found(Share.of(share, vector).batch(torch.device("cpu")), count) for share in shares]
        gradient = total_gradient([part.gradient for part in found])
        assert np.linalg.norm(gradient - whole.gradient) <= 3e-6 * np.linalg.norm(whole.gradient)
        assert sum(part.loss for part in found) == pytest.approx(whole.loss, rel=1e-5, abs=1e-7)
        assert sum(part.trained for part in found) == whole.trained
        kl, cut, tokens = Distance.merged([part.distance for part in found])
        assert tokens == whole.distance[2] and cut == pytest.approx(whole.distance[1])
        assert kl == pytest.approx(whole.distance[0], rel=1e-3, abs=1e-12)
        assert sum(part.rows_trained for part in found) == pytest.approx(whole.rows_trained)
        if trainer.length is not None:
            assert stepped(found) == pytest.approx(stepped([whole]), rel=1e-4)


def stepped(found: list[Found]) -> list[float]:
    """What steps are made of, whose gradient and observations came in these parts: Fisher matrix, noise of the groups,
    share of signal, length."""
    v = torch.zeros(found[0].gradient.shape, requires_grad=True)
    optimizer = KLAdam([v], 0.04)
    v.grad = torch.from_numpy(total_gradient([part.gradient for part in found]))
    for _ in range(20):  # the average is more than noise then
        for part in found:
            assert part.observed is not None
            scores, count, gradients, groups = part.observed
            optimizer.observe(torch.from_numpy(scores), count)
            optimizer.observe_gradients(torch.from_numpy(gradients), torch.from_numpy(groups))
        optimizer.step()
    state = optimizer.state[v]
    assert float(state["noise"]) > 0 and optimizer.last_signal > 0
    fisher = state["fisher"]
    return [float(fisher.norm()), float(fisher.trace()), float(state["noise"]), optimizer.last_signal,
            optimizer.last_length]  # fmt: skip


def batch_of(lengths: list[list[int]], advantages: float = 1.0) -> dict[str, torch.Tensor]:
    """Groups of rows with these numbers of completion tokens, one prompt token each."""
    rows = [length for group in lengths for length in group]
    width = max(rows)
    mask = (torch.arange(width) < torch.tensor(rows).unsqueeze(1)).long()
    group = torch.tensor([index for index, group in enumerate(lengths) for _ in group])
    ones = torch.ones(len(rows), 1, dtype=torch.long)
    return {
        "prompt_ids": group.unsqueeze(1) + 1,
        "prompt_mask": ones,
        "completion_ids": mask * 7,
        "completion_mask": mask,
        "advantages": torch.full((len(rows),), advantages),
        "group": group,
        "num_items_in_batch": mask.sum(),
    }


def test_shares_are_whole_groups_of_about_equal_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [(10 ** (1 + torch.rand(8, generator=generator))).long().tolist() for _ in range(64)]  # 10 to 100
    shares = shares_of(batch_of(lengths), 4, every_row=True)
    tokens = [int(share["completion_mask"].sum()) for share in shares]
    assert max(tokens) - min(tokens) < 0.05 * sum(tokens) / 4
    seen = [set(share["group"].tolist()) for share in shares]
    assert set.union(*seen) == set(range(64)) and sum(map(len, seen)) == 64
    assert all(share["completion_ids"].shape[1] == share["completion_mask"].sum(dim=1).max() for share in shares)


def test_fewer_groups_than_replicas_leave_some_without_a_share() -> None:
    assert len(shares_of(batch_of([[3, 4], [5, 6]]), 4, every_row=True)) == 2
    assert len(shares_of(batch_of([[3, 4], [5, 6]], advantages=0.0), 2, every_row=False)) == 2  # nothing to train
