"""One generation spread over replicas: a thread deals out groups and takes in what is drawn; the driver's own engine
draws in the main thread and is one hand among others.

The two threads share nothing but two queues. What a lost replica held goes to others; what it had drawn but not judged
is judged here.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pipeline.rollout import Completion, EngineError, Sampling
from pipeline.scale.board import Board, Hand, Work
from pipeline.scale.fleet import Fleet
from pipeline.scale.member import Handle, Member
from pipeline.scale.wire import Drawn, Job, Judged
from rewards.problem import Problem
from rewards.verdict import Verdict

LOOK = 1.0  # seconds between two looks at who is late
ROW_SECONDS, TOKEN_SECONDS = 300.0, 0.5  # a replica that finishes no row in this time is late
_numbers = itertools.count()


@dataclass(frozen=True)
class Arrived:
    """A row that another replica has drawn, and where its verdict will be, if it is graded."""

    row: int
    completion: Completion
    verdict: Future[Verdict] | None


@dataclass(eq=False)
class Party:
    """A replica's part in a generation. member: None for the driver's own."""

    member: Member | None
    hand: Hand
    handle: Handle | None = None
    begun: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    unjudged: dict[int, tuple[Completion, Future[Verdict]]] = field(default_factory=dict)
    last: float = 0.0  # when its last row came
    gone: bool = False


class Generation:
    """seats, tokens: of the driver's own engine, and what that drew in the run. problems: every problem that was ever
    sent, with its number. judge: grades a row here."""

    def __init__(
        self,
        fleet: Fleet,
        sampling: Sampling,
        own: Hand,
        expected: float,
        problems: dict[int, tuple[int, Problem]],
        judge: Callable[[int, Completion], Future[Verdict]],
    ) -> None:
        self.fleet, self.sampling, self.judge, self.problems = fleet, sampling, judge, problems
        self.number = next(_numbers)
        self.limit = ROW_SECONDS + TOKEN_SECONDS * sampling.max_tokens
        self.board = Board(expected)
        self.own = Party(None, own)
        self.parties = [self.own]
        self.parties += [Party(m, Hand(m.about["seats"], m.tokens), m.handle) for m in fleet.joined]
        self.arrived: queue.Queue[list[Work] | Arrived | BaseException] = queue.Queue()  # for the main thread
        self._told: queue.Queue[Callable[[], None]] = queue.Queue()  # for the other
        self._finished = False
        for party in self.parties[1:]:
            self._call(party, "generate", (self.number, sampling), lambda _: None)
            self._take(party)
        self.thread = threading.Thread(target=self._run, name=f"generation-{self.number}", daemon=True)
        self.thread.start()

    # for the main thread

    def add(self, works: list[Work]) -> None:
        """Further groups."""
        self._told.put(lambda: self.board.add(works))

    def drawn_here(self, row: int, tokens: int) -> None:
        """The driver's engine has drawn a row."""
        self._told.put(lambda: self.board.drawn(self.own.hand, row, tokens))

    def next(self) -> list[Work] | Arrived:
        """What came next; waits for it.

        Who does not answer is lost after `limit`, and so are those who then have its rows. Raises `EngineError` where
        nothing came though all have had that time, and what the other thread raised.
        """
        patience = self.limit * len(self.parties)
        try:
            item = self.arrived.get(timeout=patience)
        except queue.Empty:
            held = [f"{p.member.name} ({len(p.hand.rows)})" for p in self.parties if p.member and p.hand.rows]
            raise EngineError(
                f"no completion came for {patience:.0f} s; they are held by {', '.join(held) or 'nobody'}"
            ) from None
        if isinstance(item, BaseException):
            raise item
        return item

    def finish(self) -> None:
        """All rows are there: nothing more is drawn. Verdicts still come in."""
        self._told.put(self._end)

    # in the thread

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - the main thread would wait for ever, here or for a verdict
            self.arrived.put(error)
            for party in self.parties:
                for _, verdict in party.unjudged.values():
                    verdict.set_exception(error)
            raise

    def _work(self) -> None:
        while True:
            try:
                self._told.get(timeout=LOOK)()
                while True:
                    self._told.get_nowait()()
            except queue.Empty:
                pass
            if self._finished:
                if not any(party.unjudged for party in self.parties):
                    return
            else:
                self._deal()
            self._look()

    def _deal(self) -> None:
        hands = {id(party.hand): party for party in self.parties if not party.gone}
        jobs: dict[int, list[Work]] = {}
        for hand, work in self.board.deal([party.hand for party in hands.values()]):
            jobs.setdefault(id(hand), []).append(work)
        for key, works in jobs.items():
            party = hands[key]
            if party.member is None:
                self.arrived.put(works)  # at once, or its engine might begin with the first alone
            else:
                party.heard = time.monotonic()
                sent = [self._job(party.member, work) for work in works]
                self._call(party, "put", (self.number, sent), lambda _: None)

    def _job(self, member: Member, work: Work) -> Job:
        if work.problem is None:
            return Job(work.rows, work.prompt)
        number, _ = self.problems.setdefault(id(work.problem), (len(self.problems), work.problem))
        told = None if number in member.problems else work.problem
        member.problems.add(number)
        return Job(work.rows, work.prompt, number, told)

    def _call(self, party: Party, method: str, arguments: tuple[Any, ...], then: Callable[[Any], None]) -> None:
        assert party.handle is not None
        call = party.handle.call(method, *arguments)

        def done(_: Any) -> None:
            self._told.put(lambda: self._answered(party, call, then))

        call.add_done_callback(done)

    def _answered(self, party: Party, call: Future[Any], then: Callable[[Any], None]) -> None:
        if party.gone:
            return
        error = call.exception()
        if error is None:
            then(call.result())
        else:
            self._lose(party, error)

    def _take(self, party: Party) -> None:
        self._call(party, "take", (self.number,), lambda events: self._took(party, events))

    def _took(self, party: Party, events: list[Drawn | Judged]) -> None:
        for event in events:
            party.heard = time.monotonic()
            if isinstance(event, Judged):
                party.unjudged.pop(event.row)[1].set_result(event.verdict)
                continue
            work, completion = party.hand.rows[event.row], event.completion
            self.board.drawn(party.hand, event.row, len(completion.token_ids))
            party.last = party.heard
            verdict: Future[Verdict] | None = None
            if work.problem is not None:
                verdict = Future()
                party.unjudged[event.row] = completion, verdict
            self.arrived.put(Arrived(event.row, completion, verdict))
        if not self._finished or party.unjudged:
            self._take(party)

    def _look(self) -> None:
        """Who holds something and was not heard of for too long is lost."""
        now = time.monotonic()
        for party in self.parties[1:]:
            if party.gone or not (party.hand.rows or party.unjudged):
                party.heard = now
            elif now - party.heard > self.limit:
                self._lose(party, f"it finished no completion for {self.limit:.0f} s")

    def _lose(self, party: Party, error: BaseException | str) -> None:
        assert party.member is not None
        party.gone = True
        rows = self.board.give_back(party.hand)
        doing = f"drawing ({rows} completions go to others)" if rows else f"grading ({len(party.unjudged)} verdicts)"
        self.fleet.lost(party.member, doing, error, party.handle)
        for row, (completion, verdict) in party.unjudged.items():
            _follow(self.judge(row, completion), verdict)
        party.unjudged.clear()

    def _end(self) -> None:
        self._finished = True
        for party in self.parties[1:]:
            member = party.member
            if member is None or party.gone:
                continue
            member.tokens, drawn = party.hand.tokens, party.hand.tokens - member.tokens
            self.fleet.drawn[member.number] += drawn
            self.fleet.seconds[member.number]["generate"] += max(0.0, party.last - party.begun)
            self._call(party, "end", (self.number,), lambda _: None)


def _follow(leader: Future[Verdict], follower: Future[Verdict]) -> None:
    def done(_: Any) -> None:
        try:
            follower.set_result(leader.result())
        except BaseException as error:  # noqa: BLE001 - also where it was cancelled; who waits must hear of it
            follower.set_exception(error)

    leader.add_done_callback(done)
