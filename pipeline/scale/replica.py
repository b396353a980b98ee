"""What one replica does: it holds a policy, an engine and graders, and works for the driver.

A plain class, so that a test can drive it in its own process; Ray makes an actor of it. Its methods come in two kinds.
Those that use the model run one after another in one thread; those named in `ASIDE` answer meanwhile: work is put into
a generation and taken out of it while the engine is drawing. What is wrong is raised, and the driver says who it was.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adapters.checkpoint import factor_probe
from pipeline.config import RunConfig
from pipeline.environment import gpu_count, has_gpu
from pipeline.policy.loading import load_policy
from pipeline.policy.memory import TRANSFORMERS_ROWS
from pipeline.policy.models import choose_model, made_ready
from pipeline.rollout import Completion, EngineError, Sampling
from pipeline.scale.lending import SharedPool
from pipeline.scale.member import Lent, clock_name
from pipeline.scale.wire import Drawn, Job, Judged, Vector, digest
from pipeline.tasks import task_of
from pipeline.tasks.graders import start_graders
from pipeline.versions import code_digest, describe_versions
from rewards.problem import Problem
from rewards.verdict import Verdict

ASIDE = ("about", "put", "take", "end")  # answer while the model is at work
PATIENCE = 5.0  # seconds after which `take` answers with nothing
IDLE_LIMIT = 7200.0  # seconds without work in a generation
KEPT = 8  # generations before the last, whose verdicts may still come
CPU_SEATS = 256  # of vLLM, see `EngineLimits`


@dataclass
class Session:
    """One generation of this replica: work that came in, what came out."""

    inbox: deque[Job] = field(default_factory=deque)
    outbox: list[Drawn | Judged] = field(default_factory=list)
    ended: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def give(self, *, jobs: list[Job] | None = None, ended: bool = False) -> None:
        with self.changed:
            self.inbox.extend(jobs or [])
            self.ended = self.ended or ended
            self.changed.notify_all()

    def post(self, event: Drawn | Judged) -> None:
        with self.changed:
            self.outbox.append(event)
            self.changed.notify_all()

    def jobs(self, wait: bool) -> list[Job]:
        """All that has come in; with `wait` not before something has, or the generation has ended.

        Raises `EngineError` where the driver did neither for `IDLE_LIMIT`."""
        with self.changed:
            if wait and not self.changed.wait_for(lambda: self.inbox or self.ended, timeout=IDLE_LIMIT):
                raise EngineError(f"the driver gave no work and did not end the generation for {IDLE_LIMIT:.0f} s")
            found = list(self.inbox)
            self.inbox.clear()
            return found

    def events(self) -> list[Drawn | Judged]:
        """What has come out since the last call; waits for something, but not for long."""
        with self.changed:
            self.changed.wait_for(lambda: self.outbox, timeout=PATIENCE)
            found, self.outbox = self.outbox, []
            return found


class Replica:
    """Draws and grades. `load` comes first; every policy is set by `serve`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._stack = ExitStack()
        self._sessions: dict[int, Session] = {}
        self._problems: dict[int, Problem] = {}
        self._lock = threading.Lock()
        self._known_projections = ""
        self._notes: list[str] = []  # for the driver to say

    # beside the model

    def about(self) -> dict[str, Any]:
        """Where this is, for people and for kills, whose clock it reads, and which part of a busy core it gets."""
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if has_gpu() else ""
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        place = {"node": socket.gethostname(), "clock": clock_name(), "gpu": gpu, "pid": os.getpid()}
        return place | {"niceness": niceness}

    def put(self, generation: int, jobs: list[Job]) -> None:
        """Give groups to a generation, which may not have begun."""
        self._session(generation).give(jobs=jobs)

    def take(self, generation: int) -> list[Drawn | Judged]:
        """What has been drawn and judged since the last call; waits for something, `PATIENCE` at most."""
        return self._session(generation).events()

    def end(self, generation: int) -> None:
        """No more groups will come."""
        self._session(generation).give(ended=True)

    def _session(self, generation: int) -> Session:
        with self._lock:
            for old in [number for number in self._sessions if number < generation - KEPT]:
                del self._sessions[old]
            return self._sessions.setdefault(generation, Session())

    # with the model

    def load(self, config: RunConfig, sharing: int, lent: list[Lent] | None = None) -> dict[str, Any]:
        """Start the graders, load the model, start the engine; tells what the driver compares and plans with. sharing:
        replicas on this node, which share its cores; 0: one a GPU. lent: graders of other nodes, as of `SharedPool`."""
        start, free, code = time.perf_counter(), free_memory(), code_digest()
        sharing = sharing or max(1, gpu_count())
        choice = made_ready(choose_model(config.model, config.hub))
        self.config, self.task = config, task_of(config)
        pool = self._stack.enter_context(start_graders(config, sharing))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // sharing))
        self.pool: Any = SharedPool(pool, lent, self._notes.append) if lent and self.task.runs_programs else pool
        self.policy = load_policy(choice, config)
        self._stack.callback(self.policy.close)
        return self.about() | {
            "seconds": round(time.perf_counter() - start, 1),
            "versions": describe_versions() | {"this code": code},
            "fingerprint": self.policy.model.tinylora.base_fingerprint,
            "tier": pool.describe()["tier"],
            "free": free,
            "seats": seats_of(self.policy, config),
        }

    def serve(self, vector: Vector) -> dict[str, Any]:
        """Make this the policy of the engine; tells the hash of what `v` then is, when it began and ended by this
        process's `time.monotonic`, and what is to be said of the time since the last one."""
        begun = time.monotonic()
        self.take_vector(vector)
        self.policy.serve()
        notes = [self._notes.pop(0) for _ in range(len(self._notes))]
        return {"digest": self.vector_digest(), "begun": begun, "ended": time.monotonic(), "notes": notes}

    def probe(self) -> np.ndarray:
        """(modules,) float32: one number of the factors and P of every module, the same on every replica."""
        return factor_probe(self.policy.model).numpy()

    def generate(self, generation: int, sampling: Sampling) -> None:
        """Draw the groups that are put into a generation until it ends."""
        session = self._session(generation)
        while jobs := session.jobs(wait=True):
            self._draw(session, jobs, sampling)

    def close(self) -> None:
        """Give everything back."""
        self._stack.close()

    def take_vector(self, vector: Vector) -> None:
        """Make `v`, and P where it came along, those of the model."""
        bank = self.policy.model.tinylora
        if vector.projections is not None:
            bank.set_projections(torch.from_numpy(np.array(vector.projections)))
            self._known_projections = ""
        if not self._known_projections:
            self._known_projections = digest(bank.projections.cpu().numpy())
        if vector.projections_digest != self._known_projections:
            raise EngineError("its projections are not the driver's")
        if self.vector_digest() != vector.digest:
            with torch.no_grad():
                bank.v.copy_(torch.from_numpy(np.array(vector.values)))

    def vector_digest(self) -> str:
        return digest(self.policy.model.tinylora.v.detach().float().cpu().numpy())

    def _draw(self, session: Session, jobs: list[Job], sampling: Sampling) -> None:
        """One call of the engine; what comes in meanwhile joins it."""
        rows: list[tuple[int, Job]] = []

        def prompts_of(new: list[Job]) -> list[list[int]]:
            for job in new:
                if job.problem is not None and job.told is not None:
                    self._problems[job.problem] = job.told
            rows.extend((row, job) for job in new for row in job.rows)
            return [job.prompt for job in new for _ in job.rows]

        def finished(index: int, completion: Completion) -> None:
            number, job = rows[index]
            session.post(Drawn.of(number, completion))
            if job.problem is not None:
                self._grade(session, number, completion, self._problems[job.problem])

        def more(idle: bool) -> list[list[int]]:
            return prompts_of(session.jobs(wait=False))

        numbered = Sampling(sampling.max_tokens, sampling.temperature, sampling.seed, sampling.truncation,
                            lambda index: rows[index][0])  # fmt: skip
        self.policy.engine.generate(prompts_of(jobs), numbered, finished, more)

    def text(self, row: int, completion: Completion, problem: Problem) -> str:
        """What is graded of a completion."""
        return self.policy.tokenizer.decode(completion.token_ids, skip_special_tokens=True)

    def _grade(self, session: Session, row: int, completion: Completion, problem: Problem) -> None:
        text = self.text(row, completion, problem)

        def judged(done: Future[Verdict]) -> None:
            session.post(Judged(row, done.result()))

        self.task.grade(self.pool, text, problem).add_done_callback(judged)


def free_memory() -> int:
    """Bytes that are free: of the GPU, or of the machine where there is none."""
    if has_gpu():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def seats_of(policy: Any, config: RunConfig) -> int:
    """Completions that an engine draws at a time."""
    if not config.vllm:
        return TRANSFORMERS_ROWS
    return policy.memory.sequences if has_gpu() and policy.memory else CPU_SEATS
