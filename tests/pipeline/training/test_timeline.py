"""The time line: unions of spans, what a step's line holds, and which share of it stood idle."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rollout.streaming import StreamingGrader
from pipeline.training.timeline import Timeline, merged
from rewards.grader.pool import GraderPool
from rewards.problem import Problem, Test

TICKS = st.integers(0, 60)


@settings(deadline=None)
@given(spans=st.lists(st.tuples(TICKS, TICKS).map(lambda ends: (min(ends), max(ends)))))
def test_a_union_covers_what_its_spans_cover(spans: list[tuple[int, int]]) -> None:
    union = merged(spans)
    assert all(first[1] < second[0] for first, second in zip(union[:-1], union[1:], strict=True))
    covered = {tick for start, end in spans for tick in range(start, end)}
    assert {tick for start, end in union for tick in range(int(start), int(end))} == covered


def test_what_is_close_becomes_one() -> None:
    assert merged([(5, 6), (0, 1), (1.5, 2)], gap=0.5) == [(0, 2), (5, 6)]


class Busy:
    """A pool of two graders, of which one worked for a fifth of a second."""

    workers = 2

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def take_spans(self) -> list[tuple[float, float]]:
        spans, self.spans = self.spans, []
        return spans


def test_a_step_knows_its_lanes_and_what_stood_idle() -> None:
    pool = Busy()
    timeline = Timeline(pool)  # type: ignore[arg-type]
    start = time.perf_counter()
    time.sleep(0.1)
    timeline.add("generate", start)
    time.sleep(0.1)
    pool.spans = [(start, start + 0.15), (start + 0.15, start + 0.2)]
    line, idle = timeline.close(1)
    length = line["end"] - line["start"]
    assert line["step"] == 1 and abs(line["end"] - time.time()) < 1 and set(line["lanes"]) == {"generate", "grade"}
    assert len(line["lanes"]["grade"]) == 1
    assert idle["graders"] == pytest.approx(1 - 0.2 / (2 * length), abs=0.01)
    assert idle["device"] == pytest.approx(1 - 0.1 / length, abs=0.05)
    following, idle = timeline.close(2)
    assert following["start"] == line["end"] and following["lanes"] == {"grade": []} and idle["graders"] == 1


def test_a_task_without_graders_has_no_lane_for_them() -> None:
    line, idle = Timeline().close(1)
    assert line["lanes"] == {} and set(idle) == {"device"}


def test_two_batches_are_graded_at_a_time_and_graders_count_their_work() -> None:
    problem = Problem("sum", "", (Test("1 2\n", "3\n"),))
    body = 'int a, b; scanf("%d%d", &a, &b); printf("%d\\n", a + {});'
    program = "```cpp\n#include <cstdio>\nint main() {{ " + body + " }}\n```"
    with GraderPool(1, quiet=True) as pool:
        pool.take_spans()
        grader = StreamingGrader(pool)
        first, second = grader.begin([problem]), grader.begin([problem] * 2)
        first.submit(0, program.format("b"))
        second.submit(1, program.format("a"))
        second.submit(0, program.format("b"))
        assert not second.is_done(1)
        second.wait_for_any([1])
        assert [verdict.accepted for verdict in second.collect()] == [True, False] and first.is_done(0)
        assert first.collect()[0].accepted and first.times.wait == 0 and second.times.hidden < 0.5
        spans = pool.take_spans()
        assert len(spans) == 2 and all(end > start for start, end in spans) and not pool.take_spans()
