"""Programs go to lent graders when a replica's own are busy, and come back to these when a node leaves or hangs."""

from __future__ import annotations

from concurrent.futures import Future
from queue import Queue
from typing import Any

import pytest

from pipeline.scale import lending
from pipeline.scale.lending import AHEAD, SharedPool
from pipeline.scale.member import Lent
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


def with_limit(seconds: float, node: str, monkeypatch: pytest.MonkeyPatch) -> tuple[SharedPool, Pool, Node, Queue[str]]:
    """A pool whose own graders are busy, the grader that a node lends, which may take so long, and what is said."""
    monkeypatch.setattr(lending, "VERDICT_LIMIT", seconds)
    own, lent, said = Pool(), Node(), Queue[str]()
    own.waiting = 2
    return SharedPool(own, [Lent(node, lent, 1)], said.put), own, lent, said  # type: ignore[arg-type]


def test_own_graders_come_first_then_those_that_are_lent() -> None:
    own, near, far = Pool(), Node(), Node()
    pool = SharedPool(own, [Lent("near", near, 1), Lent("far", far, 2)], print)  # type: ignore[arg-type]
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


def test_a_lent_grader_that_hangs_is_named_and_given_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, own, node, said = with_limit(0.05, "far (10.0.0.2)", monkeypatch)
    verdicts = [pool.submit(f"a{n}", PROBLEM) for n in range(AHEAD)]
    assert [verdict.result(timeout=10).status for verdict in verdicts] == [Status.ACCEPTED] * AHEAD
    assert own.sources == ["a0", "a1"]
    assert pool.submit("b", PROBLEM).done() and len(node.calls) == AHEAD
    assert "node far (10.0.0.2) gave no verdict" in said.get(timeout=10) and said.empty()


def test_a_verdict_in_time_is_taken_and_the_grader_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, own, node, said = with_limit(1.0, "far", monkeypatch)
    first = pool.submit("a", PROBLEM)
    node.calls[0].set_result(Verdict(Status.WRONG_ANSWER))
    assert first.result().status is Status.WRONG_ANSWER
    others = [pool.submit(f"b{n}", PROBLEM) for n in range(AHEAD)]
    assert len(node.calls) == 1 + AHEAD and not own.sources
    for other in others:
        other.result(timeout=10)
    assert own.sources == ["b0", "b1"] and said.get(timeout=10)
