"""A whole trainer on the tiny model: rollouts by transformers, answers judged at once, no program run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adapters import TinyLoRAConfig, inject
from pipeline.config import Settings, resolved
from rewards.problem import Problem

SETTINGS: dict[str, Any] = {
    "task": "gsm8k",
    "dataset": "x",
    "prompts_per_step": 2,
    "num_generations": 4,
    "steps": 1,
    "max_completion_length": 12,
}
PROBLEMS = [Problem("a", "One?", answer="1", source="easy"), Problem("b", "Two?", answer="2", source="hard")]


def by_text(completion: str) -> float:
    """A reward that random completions differ in."""
    return sum(map(ord, completion)) % 7


def tiny_trainer(
    model_folder: Path,
    run: Path,
    *,
    reward: Callable[[str], float] | None = by_text,
    problems: list[Problem] = PROBLEMS,
    on_step: Callable[[dict[str, Any]], bool | None] = lambda record: None,
    **settings: Any,
) -> Any:
    """A `TinyLoRATrainer` in training mode. reward: of a completion's text, in the place of the task's own; None for
    these."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.policy.loading import Policy
    from pipeline.rollout.streaming import StreamingGrader
    from pipeline.rollout.transformers_engine import TransformersEngine
    from pipeline.run_folder import RunFolder
    from pipeline.tasks import TASKS
    from pipeline.training.grpo import training_task
    from pipeline.training.trainer import TinyLoRATrainer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    torch.nn.init.normal_(inject(model, TinyLoRAConfig(u=8)).v, std=0.1)
    config = resolved(Settings(**SETTINGS | settings), starter=True, gpu=False)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    engine = TransformersEngine(model, eos_token_ids=[2], pad_token_id=0)
    grader = StreamingGrader(None, training_task(config))
    folder = RunFolder(run)
    (run / "rollouts").mkdir(parents=True, exist_ok=True)
    trainer = TinyLoRATrainer(Policy(model, tokenizer, engine), grader, problems, config, folder, on_step)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()

    def rewarded(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [reward(c if isinstance(c, str) else c[0]["content"]) for c in completions]  # type: ignore[misc]

    def nothing(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [0.0] * len(completions)

    if reward is not None:
        own = len(TASKS[config.task].rewards)
        functions = [rewarded] + [nothing] * (own - 1)
        rewards = [replace(one, of_text=f) for one, f in zip(trainer.task.rewards, functions, strict=False)]
        trainer.task = replace(trainer.task, rewards=(*rewards, *trainer.task.rewards[own:]))
        trainer.reward_funcs[:] = [one.of_text for one in trainer.task.rewards]
        if trainer.dynamic is not None:
            trainer.dynamic.task = trainer.task
    return trainer
