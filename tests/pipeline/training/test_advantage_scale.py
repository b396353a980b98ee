"""Scaling advantages changes the gradient; scaling rewards would not: a group's normalisation takes any factor out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import TinyLoRAConfig, inject
from pipeline.config import Settings, resolved
from rewards.problem import Problem

pytestmark = pytest.mark.integration
SETTINGS: dict[str, Any] = {
    "task": "gsm8k",
    "dataset": "x",
    "prompts_per_step": 2,
    "num_generations": 4,
    "steps": 1,
    "max_completion_length": 12,
}
PROBLEMS = [Problem("a", "One?", answer="1", source="easy"), Problem("b", "Two?", answer="2", source="hard")]


@pytest.fixture(scope="module")
def rolled_out(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Any]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.policy.loading import Policy
    from pipeline.rollout.streaming import StreamingGrader
    from pipeline.rollout.transformers_engine import TransformersEngine
    from pipeline.run_folder import RunFolder
    from pipeline.tasks import task_of
    from pipeline.training.trainer import TinyLoRATrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)

    def roll_out(reward_factor: float, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """A trainer and its scored batch: the same rollouts whatever the settings, rewarded by their text."""
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
        torch.nn.init.normal_(inject(model, TinyLoRAConfig(u=8)).v, std=0.1)
        config = resolved(Settings(**SETTINGS, **settings), starter=True, gpu=False)
        engine = TransformersEngine(model, eos_token_ids=[2], pad_token_id=0)
        folder = RunFolder.create(str(tmp_path_factory.mktemp("run") / "run"), "test")
        grader = StreamingGrader(None, task_of(config))
        policy = Policy(model, tokenizer, engine)
        trainer = TinyLoRATrainer(policy, grader, PROBLEMS, config, folder, lambda record: None)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()

        def by_text(prompts: Any, completions: Any, **_: Any) -> list[float]:
            return [reward_factor * (sum(map(ord, c[0]["content"])) % 7) for c in completions]

        trainer.reward_funcs[0] = by_text
        rows = [row for row in trainer.train_dataset for _ in range(4)]
        return trainer, trainer._generate_and_score_completions(rows)

    return roll_out


def gradient(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    for part, weight in trainer._micro_batches(batch):
        (trainer.compute_loss(trainer.model, part) * weight).backward()
    return trainer.bank.v.grad.clone()


def test_only_scaled_advantages_change_the_gradient(rolled_out: Callable[..., tuple[Any, Any]]) -> None:
    def of_hard(reward_factor: float, scales: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        trainer, batch = rolled_out(reward_factor, advantage_scale=scales)
        hard = torch.tensor([PROBLEMS[row["problem"]].source == "hard" for row in trainer._rollout_rows])
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
    [("dapo", None, "group"), ("dr_grpo", None, "none"), ("dr_grpo", "group", "group"), ("grpo", "batch", "batch")],
)
def test_advantages_are_divided_by_what_is_told(
    rolled_out: Callable[..., tuple[Any, Any]], loss_type: str, told: str | None, divisor: str
) -> None:
    """(r − mean of the group) / (standard deviation + 1e-4), and nothing below the line for Dr. GRPO."""
    trainer, batch = rolled_out(1.0, loss_type=loss_type, scale_rewards=told)
    rewards = torch.tensor(trainer._totals(), dtype=torch.float64).view(-1, 4)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = {"group": rewards.std(dim=1, keepdim=True), "batch": rewards.std(), "none": None}[divisor]
    expected = centred if deviation is None else centred / (deviation + 1e-4)
    torch.testing.assert_close(batch["advantages"].double(), expected.flatten(), rtol=1e-4, atol=1e-5)
    equal = (rewards == rewards[:, :1]).all(dim=1)
    assert trainer.record.values["zero_variance_groups"] == float(equal.double().mean())
