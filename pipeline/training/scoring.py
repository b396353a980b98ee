"""What completions earn in training: the parts of the reward, their sum, and which rows are not trained at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import RunConfig
from pipeline.rollout import Completion
from pipeline.tasks import Scores, Task
from rewards.problem import Problem
from rewards.verdict import Status, Verdict


@dataclass(frozen=True)
class Scoring:
    """task: with the rewards of training. ends: tokens with which a completion that was not cut ends."""

    task: Task
    config: RunConfig
    ends: tuple[int, ...]

    def scores(
        self,
        problems: Sequence[Problem],
        completions: Sequence[Completion],
        texts: Sequence[str],
        verdicts: Sequence[Verdict],
    ) -> tuple[Scores, list[float | None]]:
        """The parts of each completion's reward by their names, and their weighted sums; None without a verdict."""
        ids = [completion.token_ids for completion in completions]
        found = self.task.scores(problems, texts, verdicts, self.config, completion_ids=ids)
        unjudged = [verdict.status is Status.NO_VERDICT for verdict in verdicts]
        scores = {
            name: [None if absent else value for value, absent in zip(values, unjudged, strict=True)]
            for name, values in found.items()
        }
        return scores, self.task.totals(scores)

    def masked(self, completions: Sequence[Completion]) -> list[bool]:
        """Whether each is left out because it was cut."""
        return [self.config.mask_truncated and self.is_cut(completion) for completion in completions]

    def is_cut(self, completion: Completion) -> bool:
        """Whether it reached the limit of its length."""
        return completion.token_ids[-1] not in self.ends
