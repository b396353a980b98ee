"""Scaling advantages changes the gradient; scaling rewards would not: a group's normalisation takes any factor out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import TinyLoRAConfig, inject
from pipeline.config import RunConfig, resolved
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
def gradient_with(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Any]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.grading import StreamingGrader
    from pipeline.policy import Policy
    from pipeline.rollout.transformers_engine import TransformersEngine
    from pipeline.run_folder import RunFolder
    from pipeline.tasks import task_of
    from pipeline.trainer import TinyLoRATrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)

    def compute(reward_factor: float, scales: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(advantages, gradient) of the same rollouts, rewarded by their length."""
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
        torch.nn.init.normal_(inject(model, TinyLoRAConfig(u=8)).v, std=0.1)
        config = resolved(RunConfig(**SETTINGS, advantage_scale=scales), starter=True, gpu=False)
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
        rows = list(trainer.train_dataset)
        batch = trainer._generate_and_score_completions([row for row in rows for _ in range(4)])
        for part, weight in trainer._micro_batches(batch):
            (trainer.compute_loss(trainer.model, part) * weight).backward()
        sources = [PROBLEMS[row["problem"]].source for row in rows for _ in range(4)]
        hard = torch.tensor([source == "hard" for source in sources])
        return batch["advantages"][hard], trainer.bank.v.grad.clone()

    return compute


def test_only_scaled_advantages_change_the_gradient(gradient_with: Callable[..., tuple[Any, Any]]) -> None:
    advantages, gradient = gradient_with(1.0, None)
    assert advantages.abs().sum() > 0 and gradient.abs().sum() > 0
    same_advantages, same_gradient = gradient_with(1000.0, None)
    torch.testing.assert_close(same_advantages, advantages, rtol=0.05, atol=0.05)
    scaled_advantages, scaled_gradient = gradient_with(1.0, "hard=3")
    torch.testing.assert_close(scaled_advantages, 3 * advantages)
    assert (scaled_gradient - gradient).norm() > 5 * (same_gradient - gradient).norm()
    _, only_hard = gradient_with(1.0, "easy=0")
    torch.testing.assert_close(scaled_gradient, gradient + 2 * only_hard, rtol=1e-3, atol=1e-6)
