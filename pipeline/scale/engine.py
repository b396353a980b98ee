"""All replicas as one rollout engine: what works with `RolloutEngine` works with it unchanged.

A group is drawn by one replica, which computes its prompt once, and judged by that replica's graders. The random
numbers of a completion are made from its number in the generation, so who draws it does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from torch import Tensor

from adapters.checkpoint import factor_probe
from pipeline.policy.loading import Policy
from pipeline.rollout import Completion, More, OnFinished, RefreshReport, Sampling, no_more
from pipeline.rollout.engine import with_numbers
from pipeline.rollout.streaming import Grading, StreamingGrader
from pipeline.scale.board import Hand, Work
from pipeline.scale.fleet import Fleet
from pipeline.scale.generation import Generation
from pipeline.scale.wire import Vector
from rewards.problem import Problem
from rewards.verdict import Verdict


class FleetEngine:
    """A `RolloutEngine` made of the driver's own and those of the other replicas.

    policy: the driver's, whose engine this takes the place of. seats: of that engine.
    """

    def __init__(self, policy: Policy, fleet: Fleet, seats: int) -> None:
        self.local, self.fleet, self.policy = policy.engine, fleet, policy
        self.name = self.local.name
        self._grading: Grading | None = None  # of the generation to come
        self._seats = fleet.own_seats = seats
        self._seen: tuple[int, int] = (1, 1)  # rows and tokens of the generations so far
        self._problems: dict[int, tuple[int, Problem]] = {}
        self._met = False
        fleet.fingerprint = self.bank.base_fingerprint
        fleet.probe = lambda: factor_probe(policy.model).numpy()

    @property
    def bank(self) -> Any:
        return self.policy.model.tinylora

    def vector(self) -> Vector:
        """The adapter's `v` as it is, for others."""
        return Vector.of(self.bank.v, self.bank)

    def refresh(self, v: Tensor) -> RefreshReport:
        """Make `v` the policy everywhere. The first time this waits until all replicas are there."""
        vector = Vector.of(v, self.bank)
        self._meet(vector)
        start = time.perf_counter()
        own: list[RefreshReport] = []
        self.fleet.serve(vector, self._projections, lambda: own.append(self.local.refresh(v)))
        self.fleet.seconds[0]["refresh"] += own[0].seconds
        return RefreshReport(time.perf_counter() - start, own[0].kept)

    def _meet(self, vector: Vector) -> None:
        """Before the first work of all replicas: wait until they are there."""
        if not self._met:
            self.fleet.serve_all(vector, self._projections)
            self._met = True

    def _projections(self) -> np.ndarray:
        return self.bank.projections.cpu().numpy()

    def generate(
        self, prompts: list[list[int]], sampling: Sampling, on_finished: OnFinished, more: More = no_more
    ) -> list[Completion]:
        """As the protocol says. Rows that others draw are reported in this thread, and graded where they were drawn if
        a grading was begun for them."""
        self._meet(self.vector())  # an engine that was never refreshed serves the base, and v is zero
        grading, self._grading = self._grading, None
        completions: dict[int, Completion] = {}
        known = 0
        expected = self._seen[1] / self._seen[0] if self._seen[0] > 1 else sampling.max_tokens / 2
        own = Hand(self._seats, self.fleet.own_tokens)

        def judge(row: int, completion: Completion) -> Future[Verdict]:
            """Grade a row here, which was lost before its verdict came."""
            assert grading is not None
            return grading.grade(row, self.policy.tokenizer.decode(completion.token_ids, skip_special_tokens=True))

        generation = Generation(self.fleet, sampling, own, expected, self._problems, judge)

        def add(new: list[list[int]]) -> None:
            nonlocal known
            if new:
                generation.add(list(groups_of(new, known, grading)))
                known += len(new)

        def finish(row: int, completion: Completion) -> None:
            completions[row] = completion
            on_finished(row, completion)

        def arrivals(wait: bool) -> Iterator[Work]:
            """Groups for the driver's engine; meanwhile takes in what others have drawn."""
            block = wait and len(completions) < known
            while block or not generation.arrived.empty():
                item = generation.next()
                if isinstance(item, list):
                    yield from item
                    block = False
                    continue
                if item.verdict is not None and grading is not None:
                    grading.graded_elsewhere(item.row, item.verdict)
                finish(item.row, item.completion)
                add(more(len(completions) == known))
                block = block and len(completions) < known

        add(prompts)
        try:
            while len(completions) < known:
                self._draw(generation, arrivals, finish, lambda: add(more(len(completions) == known)), sampling)
        finally:
            generation.finish()
        tokens = sum(len(completion.token_ids) for completion in completions.values())
        self._seen = self._seen[0] + known, self._seen[1] + tokens
        return with_numbers([completions[row] for row in range(known)])

    def _draw(self, generation: Generation, arrivals: Any, finish: OnFinished, ask: Any, sampling: Sampling) -> None:
        """One call of the driver's engine, if there is something for it; else waits for others."""
        numbers: list[int] = []
        begun = time.monotonic()

        def prompts_of(works: Iterator[Work]) -> list[list[int]]:
            found = list(works)
            numbers.extend(row for work in found for row in work.rows)
            return [work.prompt for work in found for _ in work.rows]

        def finished(index: int, completion: Completion) -> None:
            generation.drawn_here(numbers[index], len(completion.token_ids))
            self.fleet.drawn[0] += len(completion.token_ids)
            self.fleet.own_tokens += len(completion.token_ids)
            finish(numbers[index], completion)

        def more_here(idle: bool) -> list[list[int]]:
            ask()
            return prompts_of(arrivals(False))

        prompts = prompts_of(arrivals(True))
        if prompts:
            begun = time.monotonic()
            numbered = replace(sampling, number=numbers.__getitem__)
            self.local.generate(prompts, numbered, finished, more_here)
            self.fleet.seconds[0]["generate"] += time.monotonic() - begun

    def expect(self, grading: Grading) -> None:
        """The next generation is graded by this."""
        self._grading = grading

    def close(self) -> None:
        """Of the driver's own engine; the fleet is whose who opened it."""
        self.local.close()


def groups_of(prompts: list[list[int]], first: int, grading: Grading | None) -> Iterator[Work]:
    """Rows from `first` on that follow one another with the same prompt and problem, as one group."""
    rows = range(first, first + len(prompts))
    problems = [grading.problem(row) if grading else None for row in rows]
    listed = zip(rows, prompts, problems, strict=True)
    for _, group in groupby(listed, lambda one: (one[1], id(one[2]))):
        members = list(group)
        yield Work(tuple(row for row, _, _ in members), members[0][1], members[0][2])


def grade_where_drawn(policy: Policy, grader: StreamingGrader) -> StreamingGrader:
    """From now on replicas judge what they draw, if this grader was told of it just before; returns it."""
    if isinstance(policy.engine, FleetEngine):
        grader.on_begin = policy.engine.expect
    return grader
