"""The pool while both cores are busy with something else: no false time-out, no hang, no growth.

`LOAD_PROGRAMS` sets how many different programs the long test grades (default 120).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from rewards.grader.pool import GraderPool
from rewards.grader.runner import Limits
from rewards.grader.sandbox import choose_sandbox
from rewards.grader.scratch import scratch_root
from rewards.problem import Problem, Test
from rewards.verdict import Status

PROGRAMS = int(os.environ.get("LOAD_PROGRAMS", "120"))
HANG = 3600.0
pytestmark = pytest.mark.alone
SUM = Problem("sum", "", tuple(Test(f"{n}\n", f"{n * (n + 1) // 2}\n") for n in range(0, 50, 10)), time_limit=0.3)


@contextmanager
def busy_cores() -> Iterator[None]:
    """As many endless loops as cores, at a higher priority than the graders have."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(len(os.sched_getaffinity(0)))]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def program(index: int) -> tuple[str, Status]:
    """Mostly right programs, some of which use a third of their time limit; every tenth is wrong in its own way."""
    spin = "for (volatile long i = 0; i < 30000000; i = i + 1);" if index % 4 == 0 else ""
    answer, status = {
        3: ("0", Status.WRONG_ANSWER),
        13: ("*(volatile long *)8", Status.RUNTIME_ERROR),
        23: ("n / 0 * missing", Status.COMPILE_ERROR),
    }.get(index % 40, ("n * (n + 1) / 2", Status.ACCEPTED))
    body = f'long n; scanf("%ld", &n); {spin} printf("%ld\\n", {answer}); return 0 * {index};'
    return f"#include <cstdio>\nint main() {{ {body} }}\n", status


def test_a_starved_program_is_not_taken_for_a_slow_one() -> None:
    """Time is the program's own, however little CPU time others leave it."""
    spin = "int main(void) {{ for (volatile long i = 0; i < 3000000{}; i++); return 0; }}"  # C is compiled in no time
    problem = Problem("spin", "", (Test("", ""),), time_limit=0.3, language="c")
    with GraderPool(2, quiet=True) as pool:
        assert pool.submit(spin.format(9), problem).result().accepted  # the graders have started
        with busy_cores():
            futures = [pool.submit(spin.format(number), problem) for number in range(4)]
            assert [future.result().status for future in futures] == [Status.ACCEPTED] * 4


TWO_SECONDS = """
#include <time.h>
double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
int main(void) { for (double end = now() + 2; now() < end;); return 0; }
"""


def test_a_starved_program_is_not_taken_for_a_sleeping_one(tmp_path: Path) -> None:
    """It alone is starved, behind everything else on the machine; its runner looks at it as often as ever."""
    program = tmp_path / "starved"
    subprocess.run(["gcc", "-x", "c", "-", "-o", program], input=TWO_SECONDS, text=True, check=True)
    (tmp_path / "0.in").touch()
    limits = Limits(cpu_s=5.0, memory_bytes=256 << 20, file_bytes=1 << 20, wall_s=100.0, idle_s=0.05)
    run = partial(choose_sandbox()[0].run, readable=[str(program)])
    with ThreadPoolExecutor() as threads:
        future = threads.submit(run, [str(program)], [0], tmp_path, tmp_path, limits)
        while not (found := [p for p in psutil.Process().children(recursive=True) if p.name() == program.name]):
            assert not future.done()
        os.sched_setscheduler(found[0].pid, os.SCHED_IDLE, os.sched_param(0))
        with busy_cores():
            time.sleep(1)
        assert [ended.how for ended in future.result()] == ["exit"]


@pytest.mark.integration
def test_many_programs_under_load() -> None:
    with busy_cores(), GraderPool(2, quiet=True, cache_size=30) as pool:

        def grade(first: int, last: int) -> None:
            expected = [program(index) for index in range(first, last)]
            futures = [pool.submit(source, SUM) for source, _ in expected]
            for (source, status), future in zip(expected, futures, strict=True):
                verdict = future.result(HANG)
                assert verdict.status is status, (verdict.diagnostics, source)

        def memory() -> dict[str, int]:
            processes = {f"grader {index}": psutil.Process(pid) for index, pid in enumerate(pool.process_ids)}
            sizes = {name: process.memory_info().rss for name, process in processes.items()}
            folders = [folder for pid in pool.process_ids for folder in scratch_root().glob(f"grader-{pid}-*")]
            files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
            tmpfs = sum(path.stat().st_size for path in files)
            return sizes | {"trainer": psutil.Process().memory_info().rss, "tmpfs": tmpfs}

        warm_up = PROGRAMS // 2
        grade(0, warm_up)
        before = memory()
        grade(warm_up, PROGRAMS)
        growth = {name: size - before[name] for name, size in memory().items()}
        print(f"{PROGRAMS} programs, growth in bytes: {growth}, counts: {dict(pool.counts)}")
        assert all(size < 2_000_000 for size in growth.values()), growth
        assert pool.counts["no_verdict"] == 0 and pool.counts["retried"] == 0
