"""Scaling advantages changes the gradient; scaling rewards would not: a group's normalisation takes any factor out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training.microbatch import packed_part
from tests.pipeline.training.tiny_trainer import PROBLEMS, by_text, tiny_trainer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rolled_out(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Any]]:
    def roll_out(reward_factor: float, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """A trainer and its scored batch: the same rollouts whatever the settings, rewarded by their text."""

        def reward(completion: str) -> float:
            return reward_factor * by_text(completion)

        trainer = tiny_trainer(tiny_model_folder, tmp_path_factory.mktemp("run"), reward=reward, **settings)
        rows = [row for row in trainer.train_dataset for _ in range(4)]
        return trainer, trainer._generate_and_score_completions(rows)

    return roll_out


def gradient(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    for part, weight in trainer._micro_batches(batch):
        (sum(trainer.losses_of(part, packed_part(part))[0]) * weight).backward()
    return trainer.bank.v.grad.clone()


def test_only_scaled_advantages_change_the_gradient(rolled_out: Callable[..., tuple[Any, Any]]) -> None:
    def of_hard(reward_factor: float, scales: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        trainer, batch = rolled_out(reward_factor, advantage_scale=scales, scale_rewards="group")
        hard = torch.tensor([PROBLEMS[index].source == "hard" for index in trainer.rollouts.problems])
        return batch["advantages"][hard], gradient(trainer, batch)

    advantages, one = of_hard(1.0, None)
    assert advantages.abs().sum() > 0 and one.abs().sum() > 0
    same_advantages, same = of_hard(1000.0, None)
    torch.testing.assert_close(same_advantages, advantages, rtol=0.05, atol=0.05)
    scaled_advantages, scaled = of_hard(1.0, "hard=3")
    torch.testing.assert_close(scaled_advantages, 3 * advantages)
    assert (scaled - one).norm() > 5 * (same - one).norm()
    _, only_hard = of_hard(1.0, "easy=0")
    torch.testing.assert_close(scaled, one + 2 * only_hard, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "loss_type, told, divisor",
    [("grpo", {}, "none"), ("dr_grpo", {}, "none"), ("dapo", {"scale_rewards": "group"}, "group"),
     ("grpo", {"scale_rewards": "batch"}, "batch")],
)  # fmt: skip
def test_advantages_are_divided_by_what_is_told(
    rolled_out: Callable[..., tuple[Any, Any]], loss_type: str, told: dict[str, str], divisor: str
) -> None:
    """(r − mean of the group) / (standard deviation + 1e-4), and nothing below the line by default."""
    trainer, batch = rolled_out(1.0, loss_type=loss_type, **told)
    rewards = torch.tensor(trainer.rollouts.totals, dtype=torch.float64).view(-1, 4)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = {"group": rewards.std(dim=1, keepdim=True), "batch": rewards.std(), "none": None}[divisor]
    expected = centred if deviation is None else centred / (deviation + 1e-4)
    torch.testing.assert_close(batch["advantages"].double(), expected.flatten(), rtol=1e-4, atol=1e-5)
    equal = (rewards == rewards[:, :1]).all(dim=1)
    assert trainer.record.values["zero_variance_groups"] == float(equal.double().mean())
