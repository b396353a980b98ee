"""The measurements behind `python scripts/bench.py grader`: the pool against the naive way and against the compiler
alone, for each kind of program in `programs.py`.

    naive   `g++ -O2` per program, then `subprocess.run` with pipes per test; as many threads as graders
    floor   the pool's own compiler command with the ideal precompiled header, that of the program's very prologue,
            without sandbox, tests or comparison
    pool    `GraderPool`, everything it does, with the headers that it made by itself when it saw the prologues before

The three take turns on small batches, so that a change of the machine's load hits all of them; medians over the batches
count. All programs are different sources. Every process runs at the niceness of the graders. `cold` is a pool that
has seen nothing yet and makes its headers while it grades.

The cost per test is measured inside one sandbox: the pool's CPU and wall time for N tests of a program that does
nothing, less the time of a bare exec of the same program.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.bench.form import Row, row
from pipeline.bench.programs import Task, real_tasks, workloads
from rewards.grader.harness import grade
from rewards.grader.judge import Judge, JudgeConfig
from rewards.grader.lean import flags
from rewards.grader.pool import GraderPool
from rewards.grader.prologue import read_prologue
from rewards.grader.sandbox import choose_sandbox
from rewards.grader.scratch import ScratchFolder, scratch_root
from rewards.grader.toolchains import find_toolchain
from rewards.grader.worker import NICENESS
from rewards.problem import Problem, Test

BATCH = 4  # programs for every grader
TIMED = 24  # programs whose time is taken apart
NAIVE_BARS = {"contest": 4.0, "mbxp": 4.0, "humaneval-x": 2.2}
FLOOR_BAR = 0.85
Batch = list[tuple[int, Task]]


class Contenders:
    """The three ways to judge a batch. `folder` is for the files of those that are not the pool."""

    def __init__(self, pool: GraderPool, folder: Path, threads: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.folder = folder
        self.threads = threads
        self.toolchain = find_toolchain("cpp")
        self._ideal: dict[tuple[str, ...], Path | None] = {}

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Make every precompiled header, those of the floor and those of the pool."""
        for task in tasks:
            self._ideal_header(read_prologue(task.program).includes)
        if self.pool.headers is not None:
            self.pool.headers.wait()
            for task in [*tasks, *tasks]:  # every prologue is seen at least twice
                self.pool.headers.shortcuts(task.program)
            self.pool.headers.wait()

    def naive(self, batch: Batch) -> list[bool]:
        return list(self.threads.map(lambda one: self._naive(*one), batch))

    def floor(self, batch: Batch) -> list[bool]:
        return list(self.threads.map(lambda one: self._floor(*one), batch))

    def graded(self, batch: Batch) -> list[bool]:
        return [f.result().accepted for f in [grade(self.pool, task.source, task.problem) for _, task in batch]]

    def _naive(self, index: int, task: Task) -> bool:
        path = self.folder / f"naive-{index}"
        path.with_suffix(".cpp").write_text(task.program)
        command = ["g++", "-O2", "-std=c++17", "-w", f"{path}.cpp", "-o", str(path)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return False
        right = True
        for test in task.problem.tests:
            text, expected = ("", "") if task.problem.tests_are_code else (test.input, test.output)
            with suppress(subprocess.TimeoutExpired):
                done = subprocess.run([str(path)], input=text, capture_output=True, text=True, timeout=10, check=False)
                right &= done.returncode == 0 and done.stdout.split() == expected.split()
        path.unlink()
        return right

    def _floor(self, index: int, task: Task) -> bool:
        path = self.folder / f"floor-{index}"
        prologue = read_prologue(task.program)
        header = self._ideal_header(prologue.includes)
        rest = prologue.without(prologue.lines[: len(prologue.includes)]) if header else task.program
        path.with_suffix(".cpp").write_text(rest)
        words = {"{source}": [f"{path}.cpp"], "{program}": [str(path)]}
        words["{flags}"] = ["-include", str(header)] if header else []
        command = [part for word in self.toolchain.compile for part in words.get(word, [word])]
        done = subprocess.run(command, check=False, capture_output=True)
        path.unlink(missing_ok=True)
        return done.returncode == 0

    def _ideal_header(self, lines: tuple[str, ...]) -> Path | None:
        if lines not in self._ideal:
            header = self.folder / f"ideal-{len(self._ideal)}.h"
            header.write_text("".join(f"{line}\n" for line in lines))
            command = [self.toolchain.compile[0], *flags(self.toolchain), "-w", "-x", "c++-header", str(header)]
            made = lines and subprocess.run([*command, "-o", f"{header}.gch"], check=False, capture_output=True)
            self._ideal[lines] = header if made and made.returncode == 0 else None
        return self._ideal[lines]


def _seconds(work: Callable[[], list[bool]], all_right: bool) -> float:
    began = time.perf_counter()
    results = work()
    if all_right and not all(results):
        raise RuntimeError("a benchmark program was judged wrong; the measurement is void")
    return time.perf_counter() - began


def _cold_rate(tasks: Sequence[Task], workers: int | None) -> tuple[float, str]:
    """Programs per second of a pool that has seen no prologue before, and what it made of them."""
    with GraderPool(workers, quiet=True) as pool:
        if pool.headers is not None:
            pool.headers.wait()  # for the names of the lean header, which are kept on disk
        began = time.perf_counter()
        for future in [grade(pool, task.source, task.problem) for task in tasks]:
            future.result()
        seconds = time.perf_counter() - began
        about = pool.headers.describe() if pool.headers else {}
        return len(tasks) / seconds, f"{pool.counts['header_used']} served by {about.get('built', 0)} headers"


def _throughput_rows(kind: str, tasks: Sequence[Task], workers: int | None) -> list[Row]:
    real = kind not in NAIVE_BARS  # programs of a model may be wrong
    cold, made = _cold_rate(tasks, workers)
    spent: dict[str, list[float]] = {"naive": [], "floor": [], "pool": []}
    with (
        GraderPool(workers, quiet=True, cache_size=0) as pool,
        tempfile.TemporaryDirectory(dir=scratch_root()) as name,
        ThreadPoolExecutor(pool.workers) as threads,
    ):
        contenders = Contenders(pool, Path(name), threads)
        contenders.prepare(tasks)
        ways = {"naive": contenders.naive, "floor": contenders.floor, "pool": contenders.graded}
        size = BATCH * pool.workers
        for start in range(0, len(tasks), size):
            batch = list(enumerate(tasks[start : start + size], start))
            order = list(ways)
            random.Random(start).shuffle(order)
            for way in order:
                spent[way].append(_seconds(partial(ways[way], batch), all_right=not real) / len(batch))
            print(f"\r{kind}: {start + len(batch)}/{len(tasks)} programs", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        about = f"{kind}, {len(tasks)} programs, {pool.workers} graders, tier {pool.config.sandbox.tier}"
    average = statistics.mean if real else statistics.median  # real programs differ too much for a median of batches
    rate = {way: 1 / average(seconds) for way, seconds in spent.items()}
    bars = NAIVE_BARS.get(kind)
    return [
        row(f"{about}: pool against the naive way", rate["pool"], "programs/s", baseline=rate["naive"], at_least=bars),
        row(
            f"{kind}: pool against the floor, the compiler with the ideal header", rate["pool"], "programs/s",
            baseline=rate["floor"], at_least=None if real else FLOOR_BAR,
        ),
        row(f"{kind}: a cold pool against the naive way ({made})", cold, "programs/s", baseline=rate["naive"]),
    ]  # fmt: skip


def _time_rows(kind: str, tasks: Sequence[Task]) -> list[Row]:
    """Where the time of a program goes, in milliseconds of one grader alone: medians over the programs."""
    toolchain = find_toolchain("cpp")
    spent: dict[str, list[float]] = {name: [] for name in ("object", "link", "compile", "run", "grade")}
    with GraderPool(1, quiet=True) as pool, ScratchFolder("bench") as folder, ThreadPoolExecutor(1) as threads:
        contenders = Contenders(pool, folder, threads)
        contenders.prepare(tasks)
        judge = Judge(pool.config, folder)
        for task in tasks:
            shortcuts = pool.headers.shortcuts(task.program) if pool.headers else ()
            source, header = folder / "main.cpp", shortcuts[:1]
            source.write_text(header[0].rest if header else task.program)
            include = ["-include", header[0].header] if header else []
            compiler = [toolchain.compile[0], *flags(toolchain), "-w"]
            spent["object"].append(_run([*compiler, *include, "-c", str(source), "-o", f"{source}.o"]))
            linker = [word for word in toolchain.compile if word.startswith("-fuse-ld")]
            spent["link"].append(_run([*compiler, *linker, f"{source}.o", "-o", f"{source}.out"]))
            problem = task.problem
            if problem.tests_are_code:
                problem = Problem(problem.id, "", (Test("", ""),))
            job = folder / "job"
            job.mkdir()
            began = time.perf_counter()
            judge._compile(task.program, toolchain, job, shortcuts)
            compiled = time.perf_counter()
            judge._run_tests(problem, toolchain, job)
            spent["compile"].append(compiled - began)
            spent["run"].append((time.perf_counter() - compiled) / len(problem.tests))
            for path in sorted(job.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            job.rmdir()
            began = time.perf_counter()
            judge.grade(task.program, problem, shortcuts)
            spent["grade"].append(time.perf_counter() - began)
    names = {
        "object": "compile to an object, with the pool's header, no sandbox",
        "link": "link, no sandbox",
        "compile": "compile and link in the sandbox",
        "run": "sandbox, start, run and compare, a test",
        "grade": "the whole program",
    }
    return [
        row(f"{kind}: {names[name]}", 1000 * statistics.median(values), "ms a program")
        for name, values in spent.items()
    ]


def _run(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=False, capture_output=True)
    return time.perf_counter() - began


_NOTHING = "int main() {}\n"
_OVERHEAD_TESTS = 100
_OVERHEAD_ROUNDS = 9


def _bare_exec_seconds(program: Path, count: int) -> float:
    """The program itself, `count` times, started in the cheapest way that Python has."""
    began = time.perf_counter()
    for _ in range(count):
        pid = os.posix_spawn(program, [str(program)], {})
        os.waitpid(pid, 0)
    return time.perf_counter() - began


def _overhead_rows() -> list[Row]:
    """Milliseconds per test beyond the program itself, including input, output, comparison and verdict."""
    tests = tuple(Test(f"{index}\n", "") for index in range(_OVERHEAD_TESTS))
    toolchain = find_toolchain("cpp")
    rows = []
    for tier in ("A", "B"):
        try:
            sandbox, _ = choose_sandbox(tier=tier)
        except RuntimeError as error:
            print(f"tier {tier} is not measured: {error}", file=sys.stderr)
            continue
        with ScratchFolder("bench") as folder:
            judge = Judge(JudgeConfig(sandbox, "g++", "c++17"), folder)
            job = folder / "job"
            job.mkdir()
            judge._compile(_NOTHING, toolchain, job)
            many, one = Problem("many", "", tests), Problem("one", "", tests[:1])
            ours, bare = [], []
            for _ in range(_OVERHEAD_ROUNDS):
                began = time.perf_counter()
                judge._run_tests(one, toolchain, job)
                middle = time.perf_counter()
                _clear(job)
                judge._run_tests(many, toolchain, job)
                ended = time.perf_counter()
                _clear(job)
                ours.append((ended - middle - (middle - began)) / (_OVERHEAD_TESTS - 1))
                bare.append(_bare_exec_seconds(job / toolchain.program_name, _OVERHEAD_TESTS) / _OVERHEAD_TESTS)
        extra = statistics.median(ours) - statistics.median(bare)
        rows.append(row(f"tier {tier}: one test beyond the program itself (median)", 1000 * extra, "ms", at_most=2.0))
    return rows


def _clear(job: Path) -> None:
    for path in (job / "out").iterdir():
        path.unlink()
    (job / "out").rmdir()


def measure(
    programs: int, workers: int | None = None, only: Sequence[str] = (), real: tuple[str, Path] | None = None
) -> list[Row]:
    """All rows. `only` names workloads; `real`: a data set and the file of a model's completions, graded instead of
    our programs.

    Raises `GraderError` when no grader can be had.
    """
    load = os.getloadavg()[0]
    if load > 0.5:  # graders are sessions of their own, which a scheduler may favour against other work
        print(f"other work is running on this machine (load {load:.1f}): the ratios are not reliable", file=sys.stderr)
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    if real is not None:
        return _throughput_rows("real", real_tasks(*real), workers)
    chosen = {kind: tasks for kind, tasks in workloads(programs).items() if kind in (only or NAIVE_BARS)}
    rows = [row for kind, tasks in chosen.items() for row in _throughput_rows(kind, tasks, workers)]
    rows += [row for kind, tasks in chosen.items() for row in _time_rows(kind, tasks[:TIMED])]
    return rows + _overhead_rows()
