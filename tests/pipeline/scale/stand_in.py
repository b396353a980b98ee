"""Replicas without a process: a real `Replica` whose model is a function, in threads, that dies when it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline.config import RunConfig, Settings, resolved
from pipeline.rollout import Completion, More, OnFinished, RefreshReport, Sampling, no_more
from pipeline.scale.replica import ASIDE, Replica
from pipeline.scale.wire import Found, Share, Vector
from pipeline.tasks import task_of
from pipeline.versions import code_digest, describe_versions


def versions() -> dict[str, str]:
    return describe_versions() | {"this code": code_digest()}


class Died(Exception):
    """What the driver sees of a replica that was killed."""


class Bank:
    """As much of an adapter as a replica needs."""

    def __init__(self) -> None:
        self.v = torch.zeros(1, 4)
        self.projections = torch.ones(2, 4, 2, 2)
        self.base_fingerprint = "base"

    def set_projections(self, projections: torch.Tensor) -> None:
        self.projections = projections


@dataclass
class CountingEngine:
    """Draws row n of seed s as tokens that follow from (s, n) and v alone, some rows longer than others."""

    bank: Bank
    pace: float = 0.0  # seconds a row
    name: str = "counting"

    def refresh(self, v: torch.Tensor) -> RefreshReport:
        self.served = v.clone()
        return RefreshReport(0.0, lambda: 1.0)

    def generate(
        self, prompts: list[list[int]], sampling: Sampling, on_finished: OnFinished, more: More = no_more
    ) -> list[Completion]:
        prompts, done = list(prompts), list[Completion]()
        while len(done) < len(prompts):
            row = len(done)
            number = sampling.number(row) if sampling.number else row
            count = 1 + (number * 7 + sampling.seed) % 10
            done.append(Completion([49 + number % 9] * count, [-float(self.served.sum()) - 1.0] * count))
            time.sleep(self.pace)
            on_finished(row, done[-1])
            prompts += more(len(done) == len(prompts))
        return done

    def close(self) -> None: ...


class Tokenizer:
    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))


@dataclass
class StandInPolicy:
    bank: Bank = field(default_factory=Bank)
    pace: float = 0.0

    def __post_init__(self) -> None:
        self.model = type("Model", (), {"tinylora": self.bank})()
        self.engine: Any = CountingEngine(self.bank, self.pace)
        self.tokenizer, self.memory = Tokenizer(), None
        self.version: int | None = None

    def serve(self, version: int | None = None) -> RefreshReport:
        return self.engine.refresh(self.bank.v)

    def close(self) -> None: ...


def config(**settings: Any) -> RunConfig:
    return resolved(Settings(task="gsm8k", dataset="x", **settings), starter=True, gpu=False)


class StandIn(Replica):
    """A `Replica` without libraries. moment: called with a method's name when it begins; may raise `Died`."""

    def __init__(self, number: int, moment: Callable[[str], None], pace: float) -> None:
        super().__init__(number)
        self.moment, self.pace = moment, pace

    def load(self, config: RunConfig, sharing: int, lent: Any = None) -> dict[str, Any]:
        self.config, self.task, self.pool = config, task_of(config), None
        self.policy = StandInPolicy(pace=self.pace)  # type: ignore[assignment]
        about = {"seconds": 0.0, "versions": versions(), "fingerprint": "base", "tier": "none", "seats": 16}
        return self.about() | about

    def probe(self) -> np.ndarray:
        return np.ones(3, np.float32)

    def gradient(self, share: Share) -> Found:
        begun = time.monotonic()
        self.take_vector(share.vector)
        rows = share.batch(torch.device("cpu"))
        weight = float((rows["completion_mask"].sum(dim=1) * rows["advantages"]).sum())
        return Found(np.full((1, 4), weight, np.float32), begun=begun, ended=time.monotonic())

    def _draw(self, session: Any, jobs: Any, sampling: Sampling) -> None:
        self.moment("drawing")
        super()._draw(session, jobs, sampling)

    def _grade(self, *arguments: Any) -> None:
        self.moment("grading")
        super()._grade(*arguments)


class ThreadHandle:
    """A replica in threads of this process; once dead, every call fails, as that of an actor does."""

    def __init__(
        self, number: int, moment: Callable[[str], None], pace: float, made: Callable[[int], Replica] | None = None
    ) -> None:
        self.replica = made(number) if made else StandIn(number, self._moment, pace)
        self.dead = threading.Event()
        self._of_test = moment
        self._pools = {False: ThreadPoolExecutor(1), True: ThreadPoolExecutor(4)}
        self._open: list[Future[Any]] = []

    def _moment(self, name: str) -> None:
        try:
            self._of_test(name)
        except Died:
            self.die()
            raise

    def die(self) -> None:
        self.dead.set()
        for future in self._open:
            if not future.done():
                future.set_exception(Died("the process is gone"))

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.dead.is_set():
            future.set_exception(Died("the process is gone"))
            return future
        self._open.append(future)

        def work() -> None:
            try:
                self._moment(method)
                result, error = getattr(self.replica, method)(*arguments), None
            except Exception as raised:  # noqa: BLE001
                result, error = None, raised
            if self.dead.is_set() or future.done():
                return
            future.set_result(result) if error is None else future.set_exception(error)

        self._pools[method in ASIDE].submit(work)
        return future

    def kill(self) -> None:
        self.dead.set()
        for session in self.replica._sessions.values():
            session.give(ended=True)


class ThreadLauncher:
    """moment(number, start, name): called at a replica's moments; start counts its lives. made: makes replicas that
    are not stand-ins."""

    sharing = 1

    def __init__(
        self,
        count: int,
        moment: Callable[[int, int, str], None] = lambda *_: None,
        pace: float = 0.0,
        made: Callable[[int], Replica] | None = None,
    ) -> None:
        self.count, self.moment, self.pace, self.made = count, moment, pace, made
        self.handles: list[ThreadHandle] = []
        self.starts: dict[int, int] = {}

    def start(self, number: int) -> ThreadHandle:
        life = self.starts[number] = self.starts.get(number, 0) + 1
        self.handles.append(
            ThreadHandle(number, lambda name: self.moment(number, life, name), self.pace, self.made)
        )
        return self.handles[-1]

    def wanted(self) -> int:
        return self.count

    def lenders(self, config: RunConfig) -> list[Any]:
        return []

    def close(self) -> None: ...


def vector_of(bank: Bank) -> Vector:
    return Vector.of(bank.v, bank)
