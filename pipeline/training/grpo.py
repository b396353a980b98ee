"""What TRL's GRPO trainer is given: its arguments and its rows; and the rewards that only training has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig
from trl.rewards import get_soft_overlong_punishment

from pipeline.config import RunConfig
from pipeline.tasks import Reward, Task
from pipeline.tasks.problem_sets import training_order
from rewards.problem import Problem


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
        loss_type=config.loss_type,
        importance_sampling_level=config.importance_sampling_level,
        scale_rewards=config.scale_rewards,  # for a chart: the advantages are ours
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        beta=0.0,  # set after construction: TRL would load a second model; ours is this one with v switched off
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

    A row names its problem by its index; TRL repeats it for every completion of the group.
    """
    order = training_order(problems, config, rollout_steps(config) * config.prompts_per_step, origin)
    return Dataset.from_dict({"problem": order})


def rollout_steps(config: RunConfig) -> int:
    """How often a run generates."""
    return -(-config.steps // config.num_iterations)


def training_task(task: Task, config: RunConfig) -> Task:
    """The run's task with the rewards that only training has: the penalty for overlong completions (DAPO, arXiv
    2503.14476, equation 13), of weight 1."""
    if not config.overlong_cache:
        return task
    penalty: Any = get_soft_overlong_punishment(config.max_completion_length, config.overlong_cache)
    return replace(task, rewards=(*task.rewards, Reward(penalty.__name__, 1.0, of_text=penalty)))
