"""Reward functions for programs, with the signature that TRL expects: usable with its `GRPOTrainer` as they are.

    with GraderPool() as pool:
        trainer = GRPOTrainer(..., reward_funcs=CodeReward(pool), train_dataset=dataset)

The data set needs either a column `problem` (a record as in `rewards/problem.py`, the same as JSON text, or a
`Problem`), or the fields of a record as columns of their own, of which only `tests` is required.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rewards.extraction import extract
from rewards.grader.harness import grade, wanted_function
from rewards.grader.pool import GraderPool
from rewards.problem import Problem, ProblemError, problem_from_record
from rewards.scoring import COMPILE_CREDIT, check_scheme, score
from rewards.verdict import Verdict

_FIELDS = tuple(f.name for f in fields(Problem))


def completion_text(completion: Any) -> str:
    """The text of a completion in either of TRL's forms: a string, or a list of chat messages (the last one counts)."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1].get("content") or "") if completion else ""


def problems_from_columns(columns: Mapping[str, Sequence[Any]], count: int) -> list[Problem]:
    """The problem of each completion, from the columns of a data set. Raises `ProblemError` where none can be read."""
    if "problem" in columns:
        return [_problem(value) for value in columns["problem"]]
    if "tests" not in columns:
        raise ProblemError("grading programs needs a column 'problem' or a column 'tests' in the data set")
    problems = []
    for index in range(count):
        record = {name: columns[name][index] for name in _FIELDS if name in columns}
        problems.append(_problem({"id": str(index), "statement": ""} | record))
    return problems


def _problem(value: Any) -> Problem:
    if isinstance(value, Problem):
        return value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ProblemError(f"the column 'problem' holds text that is not JSON ({error})") from None
    return problem_from_record(value)


class CodeReward:
    """Grades completions with a pool. The reward is `score` of the verdict; None where the grader failed: TRL masks it.

    After a call, `verdicts` and `rules` (how each program was found) hold what the rewards were made of.
    """

    __name__ = "code_reward"  # the name under which TRL logs it

    def __init__(self, pool: GraderPool, scheme: str = "tiered", compile_credit: float = COMPILE_CREDIT) -> None:
        check_scheme(scheme, compile_credit)
        self.pool = pool
        self.scheme = scheme
        self.compile_credit = compile_credit
        self.verdicts: list[Verdict] = []
        self.rules: list[str] = []

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        """One reward per completion; `columns` hold one value per completion, as TRL passes them."""
        problems = problems_from_columns(columns, len(completions))
        found = [
            extract(completion_text(completion), problem.language, wanted_function(problem))
            for completion, problem in zip(completions, problems, strict=True)
        ]
        futures = [grade(self.pool, one.source, problem) for one, problem in zip(found, problems, strict=True)]
        self.verdicts = [future.result() for future in futures]
        self.rules = [one.rule for one in found]
        return [score(verdict, self.scheme, self.compile_credit) for verdict in self.verdicts]
