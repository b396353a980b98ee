"""What TRL's GRPO trainer is given, its arguments and its rows, and what our trainer relies on in it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

from pipeline.config import RunConfig
from pipeline.tasks import Reward, Task, task_of
from pipeline.tasks.problem_sets import training_order
from rewards.problem import Problem

RATIO_CAP = 2.0  # truncation of the importance ratio between trainer and engine, per token


def grpo_arguments(config: RunConfig, output_dir: Path, *, checkpointing: bool = False) -> GRPOConfig:
    """TRL's arguments for one optimizer step per batch of prompts_per_step × num_generations completions.

    checkpointing: recompute activations in the backward pass.
    """
    return GRPOConfig(
        output_dir=str(output_dir),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=config.num_generations,
        num_iterations=config.num_iterations,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        learning_rate=config.learning_rate or 1.0,  # of `KLAdam`: the schedule's factor
        lr_scheduler_type=config.lr_schedule,
        optim="adamw_torch",
        weight_decay=0.0,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm or math.inf,
        reward_weights=[reward.weight for reward in training_task(config).rewards],
        loss_type=config.loss_type,
        importance_sampling_level=config.importance_sampling_level,
        mask_truncated_completions=config.mask_truncated,
        scale_rewards=config.scale_rewards,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        beta=0.0,  # set after construction: TRL would load a second model; ours is this one with v switched off
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=RATIO_CAP,
        bf16=False,  # no autocast: the model has its dtype and v stays float32
        gradient_checkpointing=checkpointing,
        shuffle_dataset=False,  # the order of the problems is part of the dataset
        save_strategy="steps",
        save_steps=config.num_iterations,
        logging_steps=1,
        report_to=config.report_to,
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def training_rows(problems: list[Problem], config: RunConfig, origin: Mapping[str, int] | None = None) -> Dataset:
    """One row a prompt for the whole run, in the order of training: every pass over the problems is shuffled anew.

    The columns are the chat prompt, the problem's index, and what the task's rewards need.
    """
    order = training_order(problems, config, rollout_steps(config) * config.prompts_per_step, origin)
    return Dataset.from_list(rows_of(problems, config, order))


def rows_of(problems: list[Problem], config: RunConfig, order: Sequence[int]) -> list[dict[str, Any]]:
    """The rows that TRL is given for the problems at these indices."""
    task = task_of(config)
    return [{"prompt": task.prompt.messages(problems[i]), "problem": i, **task.columns(problems[i])} for i in order]


def rollout_steps(config: RunConfig) -> int:
    """How often a run generates."""
    return -(-config.steps // config.num_iterations)


def training_task(config: RunConfig) -> Task:
    """The run's task with the rewards that only training has: the penalty for overlong completions (DAPO, arXiv
    2503.14476, equation 13), of weight 1."""
    task = task_of(config)
    if not config.overlong_cache:
        return task
    penalty: Any = get_soft_overlong_punishment(config.max_completion_length, config.overlong_cache)
    return replace(task, rewards=(*task.rewards, Reward(penalty.__name__, 1.0, of_text=penalty)))


def check_trl() -> None:
    """The hooks that our trainer overrides are private: fail with a name, not with wrong gradients, when TRL changes
    them."""
    expected = {
        "_tokenize_prompts": ["self", "prompts"],
        "_generate_single_turn": ["self", "prompt_ids", "images", "multimodal_fields", "num_generations"],
        "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
        "_generate_and_score_completions": ["self", "inputs"],
        "_compute_loss": ["self", "model", "inputs"],
        "_prepare_inputs": ["self", "generation_batch"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    }
    for name, parameters in expected.items():
        found = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[: len(parameters)]
        if found != parameters:
            raise RuntimeError(f"TRL's GRPOTrainer.{name} changed ({found}); this project is written for trl 1.15")
