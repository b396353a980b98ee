"""The graders of a run: a pool of processes that run programs, or none where a task compares answers."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from pipeline.config import RunConfig
from pipeline.environment import has_gpu
from pipeline.tasks import TASKS
from rewards.grader.pool import GraderPool
from rewards.grader.toolchains import find_toolchain

ENGINE_CORES = 2


class NoGraders(AbstractContextManager["NoGraders"]):
    """Stands where a task needs no programs to be run: no compiler, no sandbox, no processes."""

    workers = 0

    def take_spans(self) -> list[tuple[float, float]]:
        return []

    def describe(self) -> dict[str, Any]:
        return {"tier": "none", "isolation": "answers are compared; no program is run"}

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        return None


def start_graders(config: RunConfig, sharing: int = 1) -> Any:
    """The grader pool of a run, or `NoGraders`; to be started before a model is loaded: graders are spawned, and must
    not inherit a GPU. On a GPU machine two cores are left to the engine's loop, which launches the GPU's work.
    sharing: how many runs or replicas share this machine's cores.

    Raises `GraderError` where the task's language cannot be run here.
    """
    task = TASKS[config.task]
    if not task.runs_programs:
        return NoGraders()
    if task.language:
        find_toolchain(task.language)
    cores = len(os.sched_getaffinity(0))
    cores = max(1, cores // sharing)
    workers = config.grader_workers or (max(1, cores - ENGINE_CORES) if has_gpu() else cores)
    return GraderPool(workers=workers, unsafe=config.unsafe_grader, header_bytes=config.header_store << 20)
