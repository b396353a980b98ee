"""The tasks, one file each: a file of this folder that defines `TASK` is a task of the file's name.

`code` and `q` are graded by running programs; `countdown` and `gsm8k` compare answers, and still give a `Verdict`, so
that evaluation, pass rates and rollout files are the same for all tasks. The other files serve every task.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from pipeline.config import TASK_NAMES, ConfigError, RunConfig, Settings
from pipeline.tasks.prompts import Prompt, choose_prompt
from pipeline.tasks.task import Generator, Reward, Scores, Task, means

__all__ = ["PROMPTS", "TASKS", "Generator", "Reward", "Scores", "Task", "means", "task_of"]
__all__ += ["with_dataset"]

TASKS: dict[str, Task] = {name: import_module(f"pipeline.tasks.{name}").TASK for name in TASK_NAMES}
PROMPTS: dict[str, Prompt] = {name: prompt for task in TASKS.values() for name, prompt in task.prompts.items()}


def task_of(config: RunConfig) -> Task:
    """The task of a run, with the prompt that its settings choose. Raises `ConfigError` for an unusable template."""
    task = TASKS[config.task]
    prompt = choose_prompt(config.template, config.system_prompt, task.prompt, PROMPTS)
    return replace(task.variants.get(config.template or "", task), chosen=prompt)


def with_dataset(settings: Settings, *, starter: bool) -> Settings:
    """The task's own problems where no data set is given. Raises `ConfigError` where it has none for the model."""
    if settings.dataset is not None:
        return settings
    task = TASKS[settings.task]
    if task.generator is None or (task.generator.default == "starter" and not starter):
        raise ConfigError(f"--dataset is missing: {task.advice}")
    return replace(settings, dataset=task.generator.name)
