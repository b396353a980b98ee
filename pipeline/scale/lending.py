"""Graders that nodes without a replica lend: what a replica's own cannot take at once goes to them.

A program and its problem then cross the network, and are judged in that node's sandbox. If a verdict does not come
in time, the replica's own graders judge the program, so a node that leaves or hangs costs time alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any

from pipeline.config import RunConfig
from pipeline.scale.member import Lent
from pipeline.tasks.graders import start_graders
from rewards.grader.pool import GraderPool
from rewards.problem import Problem
from rewards.verdict import Verdict

AHEAD = 2  # programs that a lent grader is given at a time
VERDICT_LIMIT = 120.0  # seconds: less than the driver waits for the replica, which would be blamed for it


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
    """A `GraderPool` with lent graders beside its own. say: takes a sentence about a node that is late."""

    def __init__(self, own: GraderPool, lent: Sequence[Lent], say: Callable[[str], None]) -> None:
        self.own, self.lent, self.say = own, lent, say
        self._busy = [0] * len(lent)
        self._lock = threading.Lock()
        self._calls: SimpleQueue[tuple[float, int, Future[Any]]] = SimpleQueue()  # in the order of their deadlines
        threading.Thread(target=self._watch, name="lent-graders", daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def submit(self, source: str | None, problem: Problem) -> Future[Verdict]:
        """Grade a program here if a grader is free soon, else where one is."""
        place = None if source is None or self.own.waiting < self.own.workers else self._free()
        if place is None:
            return self.own.submit(source, problem)
        answer: Future[Verdict] = Future()
        call = self.lent[place].handle.call("grade", source, problem)

        def own(found: Future[Verdict]) -> None:
            if found.cancelled():  # with the pool
                answer.cancel()
            else:
                answer.set_result(found.result())

        def done(_: Any) -> None:
            if not call.cancelled():  # a grader that was given up is given nothing more
                with self._lock:
                    self._busy[place] -= 1
            if not call.cancelled() and call.exception() is None:
                answer.set_result(call.result())
            else:
                self.own.submit(source, problem).add_done_callback(own)

        call.add_done_callback(done)
        self._calls.put((time.monotonic() + VERDICT_LIMIT, place, call))
        return answer

    def _watch(self) -> None:
        """Give up verdicts that do not come, and say once of each node that it is late."""
        late: set[int] = set()
        while True:
            deadline, place, call = self._calls.get()
            wait([call], timeout=max(0.0, deadline - time.monotonic()))
            if call.cancel() and place not in late:
                late.add(place)
                self.say(f"a grader of node {self.lent[place].node} gave no verdict for {VERDICT_LIMIT:.0f} s and is "
                         f"given up; what it had is graded here")  # fmt: skip

    def _free(self) -> int | None:
        """A place with a free grader, which then counts as busy."""
        with self._lock:
            free = [(self._busy[i] / one.workers, i) for i, one in enumerate(self.lent)
                    if self._busy[i] < AHEAD * one.workers]  # fmt: skip
            if not free:
                return None
            self._busy[min(free)[1]] += 1
            return min(free)[1]
