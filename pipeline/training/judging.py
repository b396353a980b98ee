"""From verdicts to advantages: of a whole batch at once, or of its groups as they are complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.rollout.rollouts import Rollouts
from pipeline.tasks.problem_sets import advantage_scale
from pipeline.training.advantages import group_advantages, reward_tensor
from pipeline.training.sampler import Drawn
from pipeline.training.scoring import Scoring
from rewards.problem import Problem


class Judging:
    """The judging of one batch, which is written into `rollouts`; `left` are the groups that are not judged yet.

    problems: of the rows. scale_rewards: as of `group_advantages`. scales: factors of the advantage by source.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        drawn: Drawn,
        scoring: Scoring,
        problems: Sequence[Problem],
        scale_rewards: str,
        scales: Mapping[str, float],
        device: torch.device,
    ) -> None:
        self.rollouts, self.drawn, self.scoring, self.problems = rollouts, drawn, scoring, problems
        self.scale_rewards, self.scales, self.device = scale_rewards, scales, device
        self.left = list(range(len(rollouts) // rollouts.group_size))
        self.silent = 0.0  # share of groups without an advantage

    def complete(self, least: int) -> list[int]:
        """The groups left whose verdicts are all there, at least so many of them, or the last: waits where there are
        fewer. All where advantages are divided by the deviation of the whole batch."""
        if self.scale_rewards == "batch":
            return self.left
        grading, rows = self.drawn.grading, self.drawn.graded_rows
        while True:
            found = [group for group in self.left if all(grading.is_done(rows[row]) for row in self._rows([group]))]
            if len(found) >= min(least, len(self.left)):
                return found
            grading.wait_for_any([rows[row] for row in self._rows(self.left)])

    def judge(self, groups: Sequence[int]) -> list[int]:
        """Wait for the verdicts of these groups, whole; returns their rows, which have rewards and advantages then."""
        batch, rows = self.rollouts, self._rows(groups)
        verdicts = self.drawn.grading.collect([self.drawn.graded_rows[row] for row in rows])
        problems = [self.problems[row] for row in rows]
        completions, texts = [batch.completions[row] for row in rows], [batch.texts[row] for row in rows]
        scores, totals = self.scoring.scores(problems, completions, texts, verdicts)
        advantages = self._advantages(problems, totals)
        columns: list[tuple[list[Any], Sequence[Any]]] = [
            (batch.verdicts, verdicts), (batch.totals, totals), (batch.advantages, advantages),
            *((batch.scores.setdefault(name, [None] * len(batch)), values) for name, values in scores.items()),
        ]  # fmt: skip
        for column, values in columns:
            for row, value in zip(rows, values, strict=True):
                column[row] = value
        judged = set(groups)
        self.left = [group for group in self.left if group not in judged]
        return rows

    def _advantages(self, problems: Sequence[Problem], totals: Sequence[float | None]) -> list[float]:
        size = self.rollouts.group_size
        advantages = group_advantages(reward_tensor(totals).to(self.device), size, self.scale_rewards)
        silent = (advantages.view(-1, size) == 0).all(dim=1)
        self.silent += float(silent.float().mean()) * (len(totals) / len(self.rollouts))
        if self.scales:  # here and not in the rewards: the group's normalisation would take any factor out again
            factors = [advantage_scale(problem, dict(self.scales)) for problem in problems]
            advantages = advantages * advantages.new_tensor(factors)
        return advantages.tolist()

    def _rows(self, groups: Sequence[int]) -> list[int]:
        size = self.rollouts.group_size
        return [row for group in groups for row in range(group * size, (group + 1) * size)]
