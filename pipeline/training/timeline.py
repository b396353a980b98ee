"""What ran when: a lane each for generating, training, refreshing, evaluating and grading, and what stood idle.

Lanes are of this process's clock: on a GPU each of them ends when the device has done its work. Graders are other
processes; theirs is the union of the times in which any of them judged a program.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from rewards.grader.pool import GraderPool

Span = tuple[float, float]  # begin and end in seconds
GAP = 0.05  # seconds; what is closer in one lane is drawn as one


class Timeline:
    """Spans since the last step that was closed. pool: the graders, if there are any."""

    def __init__(self, pool: GraderPool | None = None) -> None:
        self._pool = pool
        self._lanes: defaultdict[str, list[Span]] = defaultdict(list)
        self._epoch = time.time() - time.perf_counter()
        self.begin()

    def begin(self) -> None:
        """Forget what was, and begin the first step."""
        self._lanes.clear()
        if self._pool is not None:
            self._pool.take_spans()
        self._began = time.perf_counter()

    def add(self, lane: str, start: float) -> None:
        """The time from `start`, by `time.perf_counter`, until now belongs to this lane."""
        self._lanes[lane].append((start, time.perf_counter()))

    def close(self, step: int) -> tuple[dict[str, Any], dict[str, float]]:
        """End a step: its line for `timeline.jsonl`, times in seconds since 1970, and what stood idle meanwhile, as
        shares of the step: `device`, where this process neither generated nor trained nor refreshed; `graders`, of
        their processes' time. A program counts in the step in which its verdict came."""
        now = time.perf_counter()
        length, lanes = now - self._began, dict(self._lanes)
        idle = {"device": 1 - _seconds(merged(span for spans in lanes.values() for span in spans)) / length}
        if self._pool is not None and self._pool.workers:
            lanes["grade"] = self._pool.take_spans()
            idle["graders"] = 1 - _seconds(lanes["grade"]) / (self._pool.workers * length)
        record = {"step": step, "start": self._stamp(self._began), "end": self._stamp(now)}
        drawn = {
            name: [[self._stamp(start), self._stamp(end)] for start, end in merged(spans, GAP)]
            for name, spans in lanes.items()
        }
        self._lanes.clear()
        self._began = now
        return record | {"lanes": drawn}, {name: round(max(0.0, share), 4) for name, share in idle.items()}

    def _stamp(self, seconds: float) -> float:
        return round(seconds + self._epoch, 4)


def merged(spans: Iterable[Span], gap: float = 0.0) -> list[Span]:
    """The union of spans in order of time; what is at most `gap` apart becomes one."""
    union: list[Span] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1] + gap:
            union[-1] = union[-1][0], max(union[-1][1], end)
        else:
            union.append((start, end))
    return union


def _seconds(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)
