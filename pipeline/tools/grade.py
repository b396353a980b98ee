"""The grader as a tool: what `scripts/grade.py` does with its arguments."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.problems import read_problems
from pipeline.run_folder import check_target
from rewards.files import Solution, read_solutions, read_source, read_test_folder
from rewards.grader.compare import RULES
from rewards.grader.harness import grade
from rewards.grader.pool import GraderPool
from rewards.problem import DEFAULT_MEMORY_LIMIT, DEFAULT_TIME_LIMIT, Checker, ProblemError
from rewards.verdict import Verdict


def make_checker(checker: str, tolerance: float) -> Checker:
    """A comparison by its name, or a checker program by its path. Raises `ProblemError` when it is neither."""
    if checker in RULES:
        return Checker(checker, tolerance)
    if not Path(checker).is_file():
        raise ProblemError(f"--checker {checker}: neither a file nor one of {', '.join(RULES)}")
    return Checker("program", source=Path(checker).read_text(encoding="utf-8", errors="replace"))


def grade_lines(problems_path: str, solutions_path: str, overrides: Mapping[str, Any]) -> list[Solution]:
    """The solutions of a file, with limits and checkers of their problems replaced where asked."""
    problems = {problem.id: replace(problem, **overrides) for problem in read_problems(problems_path)}
    return read_solutions(solutions_path, problems)


def grade_folder(folder: str, files: Sequence[str], overrides: Mapping[str, Any]) -> list[Solution]:
    """Program files, each on all tests of the folder."""
    sources = [read_source(path) for path in files]
    wanted: dict[str, Any] = {
        "time_limit": DEFAULT_TIME_LIMIT,
        "memory_limit": DEFAULT_MEMORY_LIMIT,
        "checker": Checker(),
        **overrides,
    }
    problem = read_test_folder(folder, identifier=Path(folder).resolve().name, **wanted)
    return [
        Solution(index, replace(problem, language=language), source) for index, (source, language) in enumerate(sources)
    ]


def run(files: Sequence[str], folder: str | None, out: str | None, overrides: Mapping[str, Any], **pool: Any) -> None:
    """Grade the two files of problems and solutions, or programs on a folder of tests.

    overrides: of the problems' limits and checkers. pool: the arguments of `GraderPool`. Raises `UserError` before any
    program runs.
    """
    if out is not None:
        check_target(Path(out))
    solutions = grade_lines(files[0], files[1], overrides) if folder is None else grade_folder(folder, files, overrides)
    with GraderPool(**pool) as graders:
        print_verdicts(graders, solutions, out, names=files if folder else ())


def print_verdicts(pool: GraderPool, solutions: Sequence[Solution], out: str | None, names: Sequence[str]) -> None:
    """Grade with a progress bar, write the verdicts in the order of the solutions, print a table or a summary.

    Verdicts gather in `OUT.partial` while grading and are there after an interruption, too.
    """
    from rich.console import Console
    from rich.progress import Progress

    written = _Writer(out, solutions)
    futures: list[Future[Verdict]] = []
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("grading", total=len(solutions))
        for solution in solutions:
            future = grade(pool, solution.source, solution.problem)  # waits while many are waiting
            future.add_done_callback(lambda _: progress.advance(bar))
            futures.append(future)
            written.add_finished(futures)
        for future in futures:
            future.result()
            written.add_finished(futures)
        written.finish()
    verdicts = [future.result() for future in futures]
    for index, name in enumerate(names):
        verdict = verdicts[index]
        reason = verdict.diagnostics.strip().partition("\n")[0]
        print(f"{name}: {verdict.status} {verdict.passed}/{verdict.total} {reason}".rstrip())
    counts = Counter(verdict.status for verdict in verdicts)
    print(", ".join(f"{count} {status}" for status, count in counts.most_common()))


class _Writer:
    def __init__(self, out: str | None, solutions: Sequence[Solution]) -> None:
        self.out = Path(out) if out else None
        self.solutions = solutions
        self.count = 0
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.partial = self.out.with_name(self.out.name + ".partial")
            self.file = self.partial.open("w", encoding="utf-8")

    def add_finished(self, futures: Sequence[Future[Verdict]]) -> None:
        if not self.out:
            return
        while self.count < len(futures) and futures[self.count].done():
            solution, verdict = self.solutions[self.count], futures[self.count].result()
            record = {"problem_id": solution.problem.id, "index": solution.index} | verdict.to_record()
            self.file.write(json.dumps(record) + "\n")
            self.count += 1
        self.file.flush()

    def finish(self) -> None:
        if self.out:
            self.file.close()
            os.replace(self.partial, self.out)
            print(f"wrote {self.count} verdicts to {self.out}")
