"""Rewards that overlap generation: every completion goes to the grader pool the moment the engine finishes it.

The reward function that TRL calls afterwards only collects; what it waits for is the part of grading that generation
did not hide.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pipeline.tasks import CODE, Task
from rewards.grader.pool import GraderPool
from rewards.problem import Problem
from rewards.verdict import Status, Verdict


@dataclass
class GradingTimes:
    """Seconds. `span` runs from the first submission to the last verdict, `wait` is spent after generation ended."""

    wait: float = 0.0
    span: float = 0.0

    @property
    def hidden(self) -> float:
        """Share of the grading span that generation hid."""
        return 1.0 - self.wait / self.span if self.span > 0 else 1.0


@dataclass
class StreamingGrader:
    """Grades one batch of completions at a time: `begin`, `submit` each row in any order, `collect` all verdicts."""

    pool: GraderPool | None  # None for a task that runs no programs
    task: Task = CODE
    times: GradingTimes = field(default_factory=GradingTimes)

    def begin(self, problems: Sequence[Problem], on_graded: Callable[[Verdict], None] | None = None) -> None:
        """Expect one completion for each of `problems`. `on_graded` is called with each verdict, from a pool thread."""
        self._problems = problems
        self._on_graded = on_graded
        self._futures: list[Future[Verdict] | None] = [None] * len(problems)
        self._first = 0.0

    def submit(self, row: int, completion: str) -> None:
        self._first = self._first or time.perf_counter()
        future = self.task.grade(self.pool, completion, self._problems[row])
        self._futures[row] = future
        if (on_graded := self._on_graded) is not None:
            future.add_done_callback(lambda done: on_graded(done.result()))

    def collect(self) -> list[Verdict]:
        """Verdicts in row order. Every row must have been submitted."""
        start = time.perf_counter()
        missing = sum(future is None for future in self._futures)
        if missing:
            raise RuntimeError(f"{missing} of {len(self._futures)} completions were never handed to the graders")
        verdicts = [future.result() for future in self._futures if future is not None]
        end = time.perf_counter()
        self.times = GradingTimes(wait=end - start, span=end - (self._first or end))
        return verdicts


def verdict_metrics(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Shares over the graded completions, and how often each verdict was given."""
    graded = [verdict for verdict in verdicts if verdict.status is not Status.NO_VERDICT]
    n = max(1, len(graded))
    return {
        "pass_rate": sum(verdict.status is Status.ACCEPTED for verdict in graded) / n,
        "compile_rate": sum(verdict.compiled for verdict in graded) / n,
        "verdicts": dict(Counter(verdict.status.name for verdict in verdicts)),
    }
