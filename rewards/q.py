"""Rewards for programs in Q, the language of kdb+: the share of tests passed, and a bonus for passing all of them.

    with GraderPool() as pool:
        trainer = GRPOTrainer(..., reward_funcs=[QReward(pool), format_reward], train_dataset=dataset)

Running Q needs a licensed `q` on the PATH; without one the pool says so in a sentence. Everything else here
(extraction, scores, format) works without it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewards.code import completion_text, problems_from_columns
from rewards.extraction import extract_source
from rewards.format import blocks_in_order, last_block
from rewards.grader.harness import grade
from rewards.grader.pool import GraderPool
from rewards.verdict import Status, Verdict

PASS_RATE_WEIGHT = 1.0
PERFECT_BONUS = 2.0
TAGS = ("reasoning", "answer")
_FENCE = re.compile(r"```|~~~")


def extract_program(completion: str) -> str | None:
    """The program: the fence in the last answer block, that block itself, or else the last ```q fence."""
    block = last_block(completion, "answer")
    if block is None:
        return extract_source(completion, "q")
    found = extract_source(block, "q") if _FENCE.search(block) else block.strip()
    return found or None


def pass_rate(verdict: Verdict) -> float | None:
    """passed / total; None where the grader failed."""
    if verdict.status is Status.NO_VERDICT:
        return None
    return verdict.passed / verdict.total if verdict.total else 0.0


def perfect(verdict: Verdict) -> float | None:
    """1 if every test passed, else 0; None where the grader failed."""
    return None if verdict.status is Status.NO_VERDICT else float(verdict.accepted)


def format_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 for one reasoning block and then one answer block, nothing else."""
    return [float(blocks_in_order(completion_text(completion), TAGS) is not None) for completion in completions]


class QReward:
    """`pass_rate_weight` * passed / total + `perfect_bonus` if all tests passed; columns as for
    `rewards.code.CodeReward`."""

    __name__ = "q_reward"  # the name under which TRL logs it

    def __init__(
        self, pool: GraderPool, pass_rate_weight: float = PASS_RATE_WEIGHT, perfect_bonus: float = PERFECT_BONUS
    ) -> None:
        self.pool = pool
        self.pass_rate_weight = pass_rate_weight
        self.perfect_bonus = perfect_bonus
        self.verdicts: list[Verdict] = []

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        problems = problems_from_columns(columns, len(completions))
        futures = [
            grade(self.pool, extract_program(completion_text(completion)), problem)
            for completion, problem in zip(completions, problems, strict=True)
        ]
        self.verdicts = [future.result() for future in futures]
        return [self._score(verdict) for verdict in self.verdicts]

    def _score(self, verdict: Verdict) -> float | None:
        rate, all_passed = pass_rate(verdict), perfect(verdict)
        if rate is None or all_passed is None:
            return None
        return self.pass_rate_weight * rate + self.perfect_bonus * all_passed
