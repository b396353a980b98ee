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

from pipeline.tasks import Task
from pipeline.tasks.code import TASK as CODE
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
    """Grades one batch of completions at a time: `begin`, `submit` each row in any order, `collect` the verdicts. More
    rows can be expected meanwhile (`expect`), and single verdicts waited for (`verdict`)."""

    pool: GraderPool | None  # None for a task that runs no programs
    task: Task = CODE
    times: GradingTimes = field(default_factory=GradingTimes)
    _problems: list[Problem] = field(default_factory=list)

    def begin(self, problems: Sequence[Problem], on_graded: Callable[[Verdict], None] | None = None) -> None:
        """Expect one completion for each of `problems`. `on_graded` is called with each verdict, from a pool thread."""
        self._problems = []
        self._on_graded = on_graded
        self._futures: list[Future[Verdict] | None] = []
        self._first = self.waited = 0.0  # seconds waited for verdicts
        self.elsewhere: dict[int, Future[Verdict]] = {}
        self.expect(problems)

    def problem(self, row: int) -> Problem | None:
        """The problem whose completion is expected as `row`."""
        return self._problems[row] if row < len(self._problems) else None

    def graded_elsewhere(self, row: int, verdict: Future[Verdict]) -> None:
        """Take that a row, which is about to be submitted, is graded where it was drawn."""
        self.elsewhere[row] = verdict

    def expect(self, problems: Sequence[Problem]) -> None:
        """Expect one completion for each of these, too."""
        self._problems += problems
        self._futures += [None] * len(problems)

    def submit(self, row: int, completion: str) -> None:
        self._first = self._first or time.perf_counter()
        future = self.elsewhere.pop(row, None) or self.task.grade(self.pool, completion, self._problems[row])
        self._futures[row] = future
        if (on_graded := self._on_graded) is not None:
            future.add_done_callback(lambda done: on_graded(done.result()))

    def verdict(self, row: int) -> Verdict:
        """The verdict of a row that was submitted, when it is there."""
        future = self._futures[row]
        if future is None:
            raise RuntimeError(f"completion {row} of {len(self._futures)} was never handed to the graders")
        start = time.perf_counter()
        verdict = future.result()
        self.waited += time.perf_counter() - start
        return verdict

    def collect(self, rows: Sequence[int] | None = None) -> list[Verdict]:
        """Verdicts of these rows, or of all in their order. Every one must have been submitted."""
        wanted = range(len(self._futures)) if rows is None else rows
        missing = sum(self._futures[row] is None for row in wanted)
        if missing:
            raise RuntimeError(f"{missing} of {len(wanted)} completions were never handed to the graders")
        verdicts = [self.verdict(row) for row in wanted]
        self.times = GradingTimes(self.waited, time.perf_counter() - self._first if self._first else 0.0)
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
