"""The canary: known-right answers to some of a run's problems, graded before it as the policy's will be.

A fault of the judge or of the data then ends the run in seconds, instead of being what the policy learns.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from pipeline.config import ConfigError
from pipeline.tasks import Task
from rewards.grader.pool import GraderPool
from rewards.problem import Problem
from rewards.verdict import Verdict, first_message

SAMPLE = 16
NEEDED = 0.9  # of them must be accepted


class Canary:
    """Grading of the sample starts at once; `check` waits for it.

    problems: those with a known solution are sampled, always the same ones of the same problems.
    """

    def __init__(self, pool: GraderPool | None, task: Task, problems: Sequence[Problem]) -> None:
        known = [problem for problem in problems if problem.solution]
        chosen = random.Random(0).sample(known, min(SAMPLE, len(known)))
        self._graded: list[tuple[Problem, Future[Verdict]]] = [
            (problem, task.grade(pool, task.target(problem), problem)) for problem in chosen
        ]

    def check(self, required: bool) -> dict[str, Any]:
        """JSON-ready: how many were graded and accepted, and the first failure.

        Raises `ConfigError` where fewer than `NEEDED` were accepted; with `required` False that is only said.
        """
        failures = [(problem, future.result()) for problem, future in self._graded if not future.result().accepted]
        count = len(self._graded)
        result: dict[str, Any] = {"graded": count, "accepted": count - len(failures)}
        if failures:
            problem, verdict = failures[0]
            failure = {"problem": problem.id, "verdict": verdict.status.value, "message": first_message(verdict)}
            result["first_failure"] = failure
            if result["accepted"] < NEEDED * count:
                said = (
                    f"only {count - len(failures)} of {count} known-right solutions were accepted; the first that was "
                    f"not: {problem.id}, {verdict.status.value}, {failure['message'] or 'no message'}"
                )
                if required:
                    raise ConfigError(f"{said}; fix the grader or the data set, or continue with --no-canary")
                print(f"warning: {said}", flush=True)
        print(f"canary: {result['accepted']} of {count} known-right solutions accepted", flush=True)
        return result
