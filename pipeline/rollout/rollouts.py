"""A batch of rollouts: what generation gives and training takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.rollout.engine import Completion, EngineError
from pipeline.tasks import Scores
from rewards.verdict import Status, Verdict, first_message

UNJUDGED = Verdict(Status.NO_VERDICT)


@dataclass
class Rollouts:
    """B graded completions in plain lists; the rows of a group of `group_size` completions of one problem follow one
    another.

    problems: indices in the run's training problems. prompts: token ids. versions: for every token of a completion the
    version of `v` that drew it (optimizer steps made before). texts: of the completions, as they were graded.
    masked: rows that are not trained since they were cut. scores: each part of the reward by its name, None where a row
    has no verdict. totals: their weighted sum. A row that is still being graded is `UNJUDGED`, without rewards, and its
    advantage NaN. base_log_probs (B, T) float32: of the frozen base, where the loss has a
    KL term. old_log_probs (B, T) float32: of the policy that drew, computed as in training; None where the training
    pass itself yields them, since it trains the version that drew.
    """

    group_size: int
    problems: list[int]
    prompts: list[list[int]]
    completions: list[Completion]
    versions: list[list[int]]
    texts: list[str]
    masked: list[bool]
    verdicts: list[Verdict]
    scores: Scores
    totals: list[float | None]
    advantages: list[float]
    base_log_probs: Tensor | None = None
    old_log_probs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.completions)

    def sampled_log_probs(self) -> Tensor:
        """(B, T) float32 of the engine, zero beyond a row's end."""
        return padded_log_probs(self.completions)

    def mask(self) -> Tensor:
        """(B, T) integers, 1 for the tokens that are trained."""
        ones = [[int(not cut)] * len(c.token_ids) for c, cut in zip(self.completions, self.masked, strict=True)]
        return padded(ones, 0)

    def check_version(self, version: int, staleness: int = 0) -> None:
        """Raise `EngineError` where a token was drawn by another version of `v` than the one that is trained now, or
        than the `staleness` versions before it."""
        others = {drawn for row in self.versions for drawn in row} - set(range(version - staleness, version + 1))
        if others:
            raise EngineError(
                f"completions drawn by version {min(others)} of v were to be trained by version {version} with "
                f"--staleness {staleness}; this is a fault of this program"
            )

    def records(self, step: int, ids: Sequence[str]) -> list[dict[str, Any]]:
        """What `rollouts/` keeps of every completion of a step. ids: of the problems, by row."""
        rows = zip(ids, self.completions, self.texts, self.totals, self.advantages, self.verdicts, strict=True)
        return [
            {"step": step, "problem": problem, "completion": text, "reward": total}
            | {"rewards": {name: values[row] for name, values in self.scores.items()}}
            | {"advantage": advantage, "tokens": len(completion.token_ids), **verdict_fields(verdict)}
            for row, (problem, completion, text, total, advantage, verdict) in enumerate(rows)
        ]


def padded(rows: Sequence[Sequence[Any]], value: Any, *, left: bool = False) -> Tensor:
    """(B, T) tensor of rows of numbers, filled up with `value` on the right or on the left."""
    side = "left" if left else "right"
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def padded_log_probs(completions: Sequence[Completion]) -> Tensor:
    """(B, T) float32 log-probabilities of the engine, zero beyond a row's end."""
    return padded([completion.log_probs for completion in completions], 0.0)


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """What a rollout's record keeps of its verdict: `tests` has one letter a test (A accepted, W wrong answer, T time,
    M memory, O output limit, R runtime error), `message` is the `first_message` of one that was not accepted."""
    fields: dict[str, Any] = {"verdict": verdict.status.name, "passed": verdict.passed, "total": verdict.total}
    if verdict.tests:
        fields["tests"] = "".join(test.status.name[0] for test in verdict.tests)
    message = "" if verdict.accepted else first_message(verdict)
    return fields | ({"message": message} if message else {})
