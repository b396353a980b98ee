"""Rewards that overlap generation: every completion goes to the grader pool the moment the engine finishes it.

Collecting the verdicts afterwards waits for the part of grading that generation, and with `--staleness 1` training, did
not hide.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from pipeline.tasks import Task
from pipeline.tasks.code import TASK as CODE
from rewards.grader.pool import GraderPool
from rewards.problem import Problem
from rewards.verdict import Status, Verdict


@dataclass
class GradingTimes:
    """Seconds. `span` runs from the first submission to the last verdict, `wait` was spent waiting for verdicts."""

    wait: float = 0.0
    span: float = 0.0

    @property
    def hidden(self) -> float:
        """Share of the grading span in which other things were done."""
        return 1.0 - self.wait / self.span if self.span > 0 else 1.0


class Grading:
    """One batch of completions on its way through the graders: `submit` each row in any order, `collect` the verdicts.
    More rows can be expected meanwhile (`expect`), and single verdicts waited for (`verdict`).

    grade: begins to grade a completion. problems: one for each row. on_graded: called with each verdict, from a pool
    thread.
    """

    def __init__(
        self,
        grade: Callable[[str, Problem], Future[Verdict]],
        problems: Sequence[Problem],
        on_graded: Callable[[Verdict], None] | None = None,
    ) -> None:
        self._grade, self._on_graded = grade, on_graded
        self._problems: list[Problem] = []
        self._futures: list[Future[Verdict] | None] = []
        self._elsewhere: dict[int, Future[Verdict]] = {}
        self._first = self.last_verdict = 0.0  # of the submissions, of the verdicts; by `time.perf_counter`
        self.waited = 0.0  # seconds, for verdicts
        self.expect(problems)

    def expect(self, problems: Sequence[Problem]) -> None:
        """Expect one completion for each of these, too."""
        self._problems += problems
        self._futures += [None] * len(problems)

    def problem(self, row: int) -> Problem:
        """The problem whose completion is expected as `row`."""
        return self._problems[row]

    def graded_elsewhere(self, row: int, verdict: Future[Verdict]) -> None:
        """Take that a row, which is about to be submitted, is graded where it was drawn."""
        self._elsewhere[row] = verdict

    def grade(self, row: int, completion: str) -> Future[Verdict]:
        """Begin to grade a completion of `row` here, whether or not it is submitted."""
        return self._grade(completion, self._problems[row])

    def submit(self, row: int, completion: str) -> None:
        self._first = self._first or time.perf_counter()
        future = self._elsewhere.pop(row, None) or self.grade(row, completion)
        self._futures[row] = future
        future.add_done_callback(self._graded)

    def _graded(self, done: Future[Verdict]) -> None:
        self.last_verdict = time.perf_counter()
        if self._on_graded is not None and not done.cancelled():  # with the pool
            self._on_graded(done.result())

    def verdict(self, row: int) -> Verdict:
        """The verdict of a row that was submitted, when it is there."""
        future = self._futures[row]
        if future is None:
            raise RuntimeError(f"completion {row} of {len(self._futures)} was never handed to the graders")
        if not future.done():
            start = time.perf_counter()
            future.result()
            self.last_verdict = time.perf_counter()
            self.waited += self.last_verdict - start
        return future.result()

    def is_done(self, row: int) -> bool:
        """Whether the verdict of a row is there."""
        future = self._futures[row]
        return future is not None and future.done()

    def wait_for_any(self, rows: Sequence[int]) -> None:
        """Wait until one more of these rows, which were submitted, has its verdict."""
        start = time.perf_counter()
        pending = [future for row in rows if (future := self._futures[row]) is not None and not future.done()]
        wait(pending, return_when=FIRST_COMPLETED)
        self.waited += time.perf_counter() - start

    def collect(self, rows: Sequence[int] | None = None) -> list[Verdict]:
        """Verdicts of these rows, or of all in their order. Every one must have been submitted."""
        wanted = range(len(self._futures)) if rows is None else rows
        missing = sum(self._futures[row] is None for row in wanted)
        if missing:
            raise RuntimeError(f"{missing} of {len(wanted)} completions were never handed to the graders")
        return [self.verdict(row) for row in wanted]

    @property
    def times(self) -> GradingTimes:
        """What the grading of the rows submitted so far took."""
        return GradingTimes(self.waited, self.last_verdict - self._first if self._first else 0.0)


@dataclass
class StreamingGrader:
    """Begins to grade batches of completions. Several can be on their way; the graders take what came first. on_begin:
    is told of each."""

    pool: GraderPool | None  # None for a task that runs no programs
    task: Task = CODE
    on_begin: Callable[[Grading], None] = lambda grading: None

    def begin(self, problems: Sequence[Problem], on_graded: Callable[[Verdict], None] | None = None) -> Grading:
        """Expect one completion for each of `problems`."""
        grading = self.grading(problems, on_graded)
        self.on_begin(grading)
        return grading

    def grading(self, problems: Sequence[Problem], on_graded: Callable[[Verdict], None] | None) -> Grading:
        """What `begin` begins."""
        return Grading(self.grade, problems, on_graded)

    def grade(self, completion: str, problem: Problem) -> Future[Verdict]:
        return self.task.grade(self.pool, completion, problem)


def verdict_metrics(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Shares over the graded completions, and how often each verdict was given."""
    graded = [verdict for verdict in verdicts if verdict.status is not Status.NO_VERDICT]
    n = max(1, len(graded))
    return {
        "pass_rate": sum(verdict.status is Status.ACCEPTED for verdict in graded) / n,
        "compile_rate": sum(verdict.compiled for verdict in graded) / n,
        "verdicts": dict(Counter(verdict.status.name for verdict in verdicts)),
    }
