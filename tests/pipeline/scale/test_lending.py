"""Programs go to lent graders when a replica's own are busy, and come back to these when a node leaves."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from pipeline.scale.lending import AHEAD, SharedPool
from rewards.problem import Problem
from rewards.verdict import Status, Verdict

PROBLEM = Problem("p", "?")


class Pool:
    workers, waiting = 2, 0

    def __init__(self) -> None:
        self.sources: list[str | None] = []

    def submit(self, source: str | None, problem: Problem) -> Future[Verdict]:
        self.sources.append(source)
        done: Future[Verdict] = Future()
        done.set_result(Verdict(Status.ACCEPTED))
        return done


class Node:
    def __init__(self) -> None:
        self.calls: list[Future[Any]] = []

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        assert method == "grade"
        self.calls.append(Future())
        return self.calls[-1]

    def kill(self) -> None: ...


def test_own_graders_come_first_then_those_that_are_lent() -> None:
    own, near, far = Pool(), Node(), Node()
    pool = SharedPool(own, [(near, 1), (far, 2)])  # type: ignore[arg-type]
    assert pool.submit("a", PROBLEM).result().status is Status.ACCEPTED and own.sources == ["a"]
    own.waiting = 2
    verdicts = [pool.submit(f"b{n}", PROBLEM) for n in range(3 * AHEAD + 1)]
    assert (len(near.calls), len(far.calls)) == (AHEAD, 2 * AHEAD)
    assert verdicts[-1].done() and len(own.sources) == 2  # all were busy: one waits here
    near.calls[0].set_result(Verdict(Status.WRONG_ANSWER))
    far.calls[0].set_exception(ConnectionError("the node left"))
    assert sum(verdict.done() for verdict in verdicts) == 3 and len(own.sources) == 3
    pool.submit("c", PROBLEM)
    assert len(near.calls) + len(far.calls) == 3 * AHEAD + 1
