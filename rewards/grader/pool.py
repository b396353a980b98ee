"""The grader pool: `submit(source, problem)` gives a future of a `Verdict`.

Each grader is a process of its own (`rewards/grader/process.py`). One thread per grader hands it programs and waits:
a dead grader is noticed at once, replaced, and its program tried again, alone. A second fault yields `NO_VERDICT`,
which training masks.

The same program for the same problem is graded once: while it is being graded all callers share one future, later the
cache answers. Programs differ in what they may do; `rewards/grader/sandbox.py` says what the sandbox promises and what
not.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rewards.errors import GraderError
from rewards.grader.header import DEFAULT_BYTES, HeaderStore
from rewards.grader.header import PREFIX as HEADER_PREFIX
from rewards.grader.judge import JudgeConfig
from rewards.grader.process import GraderProcess
from rewards.grader.sandbox import TIERS, choose_sandbox
from rewards.grader.scratch import sweep
from rewards.grader.toolchains import DEFAULT_COMPILER, DEFAULT_STANDARD, compiler_version, find_toolchain, linker_flags
from rewards.grader.worker import PREFIX
from rewards.problem import Problem, Test
from rewards.verdict import Status, Verdict

KEPT_SPANS = 100_000  # of graded programs, where nobody takes them
_SELF_TEST = Problem("self-test", "", (Test("20 22\n", "42\n"),))
_SELF_TEST_SOURCE = '#include <cstdio>\nint main() { int a, b; scanf("%d%d", &a, &b); printf("%d\\n", a + b); }\n'

Key = tuple[str, Problem]
Job = tuple[Key, "Future[Verdict]"]
_announced: set[str] = set()


class GraderPool:
    """A context manager around a few grader processes.

    Args:
        workers: grader processes; default one per CPU this process may use.
        unsafe: accept tier C, which protects nothing but time and memory.
        cache_size: verdicts kept; 0 switches the cache off.
        max_pending: programs waiting for a grader before `submit` blocks.
        compiler, standard: for C++ (see `rewards/grader/toolchains.py`).
        tier: insist on one tier instead of taking the best (for tests).
        quiet: do not print the line that says which tier and toolchain were chosen.
        header_bytes: of all precompiled headers together (`rewards/grader/header.py`); 0 switches them off.
        limits: other fields of `JudgeConfig`, such as `time_factor` or `compile_cpu_s`.

    Raises `GraderError` when the compiler is missing, when no safe sandbox can be had, or when a trial program fails.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        unsafe: bool = False,
        cache_size: int = 4096,
        max_pending: int = 4096,
        compiler: str = DEFAULT_COMPILER,
        standard: str = DEFAULT_STANDARD,
        tier: str | None = None,
        quiet: bool = False,
        header_bytes: int = DEFAULT_BYTES,
        **limits: Any,
    ) -> None:
        if workers is not None and workers < 1:
            raise GraderError(f"a pool needs at least 1 grader, not {workers}")
        toolchain = find_toolchain("cpp", compiler, standard)
        sandbox, self._tier_reason = choose_sandbox(unsafe=unsafe, tier=tier)
        self.headers = HeaderStore(toolchain, sandbox, header_bytes) if toolchain.header and header_bytes else None
        sweep(PREFIX)
        sweep(HEADER_PREFIX)
        folder = str(self.headers.folder) if self.headers else ""
        self.config = JudgeConfig(sandbox, compiler, standard, header_folder=folder, **limits)
        self._toolchain = toolchain
        self.workers = workers or len(os.sched_getaffinity(0))
        self._cache: OrderedDict[Key, Verdict] = OrderedDict()
        self._cache_size = cache_size
        self._pending: dict[Key, Future[Verdict]] = {}
        self._lock = threading.Lock()
        self._jobs: queue.Queue[Job | None] = queue.Queue(max_pending)
        self._turns = _Turns()
        self._languages = {"cpp"}  # known to have a toolchain
        self._closed = False
        self.counts: Counter[str] = Counter()
        self._spans: deque[tuple[float, float]] = deque(maxlen=KEPT_SPANS)
        self._graders = [GraderProcess(self.config) for _ in range(self.workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(grader,), name=f"grader-{index}", daemon=True)
            for index, grader in enumerate(self._graders)
        ]
        for thread in self._threads:
            thread.start()
        try:
            self._self_test()
        except BaseException:
            self.close(cancel=True)
            raise
        if not quiet and self.summary() not in _announced:
            _announced.add(self.summary())
            print(self.summary(), file=sys.stderr)

    # ------------------------------------------------------------------ for callers

    def submit(self, source: str | None, problem: Problem) -> Future[Verdict]:
        """Grade a program. Blocks only while `max_pending` programs are waiting. The future never raises.

        None as the source means that the completion held no program. Raises `GraderError` at once for a language that
        cannot be graded here.
        """
        if self._closed:
            raise GraderError("the grader pool is closed")
        done: Future[Verdict] = Future()
        if source is None or not source.strip():
            done.set_result(Verdict(Status.NO_CODE, total=len(problem.tests)))
            return done
        if problem.language not in self._languages:
            find_toolchain(problem.language, self.config.compiler, self.config.standard)
            self._languages.add(problem.language)
        key = (source, problem)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                self.counts["cached"] += 1
                done.set_result(replace(self._cache[key], cached=True))
                return done
            if key in self._pending:
                self.counts["shared"] += 1
                return self._pending[key]
            self._pending[key] = done
        self._jobs.put((key, done))
        return done

    def take_spans(self) -> list[tuple[float, float]]:
        """Begin and end, by `time.perf_counter`, of the grading of every program that ended since the last call."""
        return [self._spans.popleft() for _ in range(len(self._spans))]

    @property
    def process_ids(self) -> list[int]:
        """The grader processes that run now."""
        return [pid for grader in self._graders if (pid := grader.process_id) is not None]

    @property
    def waiting(self) -> int:
        """Programs for which no grader has been free yet."""
        return self._jobs.qsize()

    def summary(self) -> str:
        """One line for people: tier, graders, toolchain."""
        about = self.describe()
        return (
            f"grader: tier {about['tier']} ({about['isolation']}), {self.workers} processes, {about['toolchain']}, "
            f"precompiled headers {about['header']}, linker {about['linker']}"
        )

    def describe(self) -> dict[str, Any]:
        """A JSON-ready description for the run's folder, with the counts so far."""
        sandbox, flags = self.config.sandbox, linker_flags()
        return {
            "tier": sandbox.tier,
            "isolation": TIERS[sandbox.tier],
            "why_not_better": self._tier_reason,
            "workers": self.workers,
            "toolchain": self._toolchain.name,
            "compiler_version": compiler_version(self._toolchain.compile[0]),
            "header": "of repeated prologues" if self.headers else "none",
            "headers": self.headers.describe() if self.headers else {},
            "linker": flags[0].removeprefix("-fuse-ld=") if flags else "default",
            "time_limit": f"{self.config.time_factor} x nominal + {self.config.time_extra} s of CPU time",
            "counts": dict(self.counts),
        }

    def close(self, *, cancel: bool = False) -> None:
        """End all graders. Waits for the submitted programs, or with `cancel` drops them and cancels their futures."""
        if self._closed:
            return
        self._closed = True
        if cancel:
            while True:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if job is not None:
                    job[1].cancel()
            for grader in self._graders:
                grader.stop()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        if self.headers:
            self.headers.close()

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)

    # ------------------------------------------------------------------ one thread per grader

    def _serve(self, grader: GraderProcess) -> None:
        grader.start()
        while (job := self._jobs.get()) is not None:
            key, future = job
            if future.set_running_or_notify_cancel():
                start = time.perf_counter()
                verdict = self._grade(grader, key)
                self._spans.append((start, time.perf_counter()))
                self._finish(key, future, verdict)
            else:
                with self._lock:
                    self._pending.pop(key, None)
        grader.stop()

    def _grade(self, grader: GraderProcess, key: Key) -> Verdict:
        source, problem = key
        shortcuts = self.headers.shortcuts(source) if self.headers and problem.language == "cpp" else ()
        with self._turns.together():
            verdict = grader.grade(source, problem, shortcuts)
        if isinstance(verdict, Verdict):
            if self.headers and verdict.header == "rejected":
                self.headers.missed(source)
            return verdict
        if not self._closed:
            self.counts["retried"] += 1
            with self._turns.alone():
                verdict = grader.grade(source, problem)
        if isinstance(verdict, Verdict):
            return verdict
        self.counts["no_verdict"] += 1
        return Verdict(Status.NO_VERDICT, total=len(key[1].tests), diagnostics=verdict[:4096])

    def _finish(self, key: Key, future: Future[Verdict], verdict: Verdict) -> None:
        with self._lock:
            self.counts["graded"] += 1
            if verdict.header:
                self.counts[f"header_{verdict.header}"] += 1
            self._pending.pop(key, None)
            if verdict.status is not Status.NO_VERDICT and self._cache_size:
                self._cache[key] = verdict
                while len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
        future.set_result(verdict)

    def _self_test(self) -> None:
        """Grade a known program, so that a broken compiler ends here and not as thousands of zero rewards."""
        verdict = self.submit(_SELF_TEST_SOURCE, _SELF_TEST).result()
        if not verdict.accepted:
            why = verdict.diagnostics.strip()[:300]
            raise GraderError(f"the grader's trial program was judged {verdict.status}: {why}")
        self.counts.clear()
        self._cache.clear()


class _Turns:
    """Many may work together, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._working = 0
        self._waiting_alone = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._waiting_alone == 0)
            self._working += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._waiting_alone += 1
            self._condition.wait_for(lambda: self._working == 0)
            self._working += 1
        try:
            yield
        finally:
            with self._condition:
                self._waiting_alone -= 1
            self._leave()

    def _leave(self) -> None:
        with self._condition:
            self._working -= 1
            self._condition.notify_all()
