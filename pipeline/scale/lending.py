"""Graders that nodes without a replica lend: what a replica's own cannot take at once goes to them.

A program and its problem then cross the network, and are judged in that node's sandbox. A verdict that does not come is
had from the replica's own graders, so a node that leaves costs time alone.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from pipeline.config import RunConfig
from pipeline.scale.fleet import Handle
from pipeline.tasks.graders import start_graders
from rewards.grader.pool import GraderPool
from rewards.problem import Problem
from rewards.verdict import Verdict

AHEAD = 2  # programs that a lent grader is given at a time


class Lender:
    """The graders of one node. Its methods may be called by many at once."""

    def __init__(self, config: RunConfig) -> None:
        self._pool = start_graders(config)

    def about(self) -> dict[str, Any]:
        """How many graders there are, and which tier."""
        return {"workers": self._pool.workers, "tier": self._pool.describe()["tier"]}

    def grade(self, source: str, problem: Problem) -> Verdict:
        """As `GraderPool.submit`, waiting for the verdict."""
        return self._pool.submit(source, problem).result()


class SharedPool:
    """A `GraderPool` with lent graders beside its own. lent: a handle and the number of graders of each node."""

    def __init__(self, own: GraderPool, lent: list[tuple[Handle, int]]) -> None:
        self.own, self.lent = own, lent
        self._busy = [0] * len(lent)
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def submit(self, source: str | None, problem: Problem) -> Future[Verdict]:
        """Grade a program here if a grader is free soon, else where one is."""
        place = None if source is None or self.own.waiting < self.own.workers else self._free()
        if place is None:
            return self.own.submit(source, problem)
        answer: Future[Verdict] = Future()
        call = self.lent[place][0].call("grade", source, problem)

        def done(_: Any) -> None:
            with self._lock:
                self._busy[place] -= 1
            if call.exception() is None:
                answer.set_result(call.result())
            else:
                self.own.submit(source, problem).add_done_callback(lambda own: answer.set_result(own.result()))

        call.add_done_callback(done)
        return answer

    def _free(self) -> int | None:
        """A place with a free grader, which then counts as busy."""
        with self._lock:
            free = [(self._busy[i] / workers, i) for i, (_, workers) in enumerate(self.lent)
                    if self._busy[i] < AHEAD * workers]  # fmt: skip
            if not free:
                return None
            self._busy[min(free)[1]] += 1
            return min(free)[1]
