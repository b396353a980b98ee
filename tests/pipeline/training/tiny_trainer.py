"""A whole trainer on the tiny model: rollouts by transformers, answers judged at once, no program run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adapters import TinyLoRAConfig, inject
from pipeline.config import Settings, resolved
from pipeline.tasks import Reward, Task
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


def rewarding(task: Task, reward: Callable[[str], float]) -> Task:
    """The task with this reward of a completion's text in the place of its own."""

    def of_text(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [reward(completion) for completion in completions]

    return replace(task, rewards=(Reward("by_text", 2.0, of_text=of_text),))


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
    from pipeline.tasks import task_of
    from pipeline.training.trainer import TinyLoRATrainer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    torch.nn.init.normal_(inject(model, TinyLoRAConfig(u=8)).v, std=0.1)
    config = resolved(Settings(**SETTINGS | settings), starter=True, gpu=False)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    engine = TransformersEngine(model, eos_token_ids=[2], pad_token_id=0)
    task = task_of(config) if reward is None else rewarding(task_of(config), reward)
    grader = StreamingGrader(None, task)
    folder = RunFolder(run)
    (run / "rollouts").mkdir(parents=True, exist_ok=True)
    trainer = TinyLoRATrainer(Policy(model, tokenizer, engine), grader, problems, config, folder, on_step)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer
