"""The rollouts of a run with dynamic sampling: one generation a step that grows by groups (`dynamic_sampling.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.config import RunConfig, parse_scales
from pipeline.rollout import Completion
from pipeline.rollout.streaming import verdict_metrics
from pipeline.run_folder import STATES, read_json
from pipeline.tasks.problem_sets import advantage_scale, training_order
from pipeline.training.advantages import reward_tensor, without_equal_groups
from pipeline.training.dynamic_sampling import DynamicSampling
from pipeline.training.grpo import rollout_steps
from pipeline.training.sampler import Drawn, PolicySampler, StepRecord
from pipeline.training.scoring import Scoring
from rewards.problem import Problem
from rewards.verdict import Verdict
from storage.files import write_json

STATE = STATES["dynamic_sampling"]


class DynamicRollouts:
    """Draws batches of groups with a signal."""

    def __init__(
        self, sampler: PolicySampler, scoring: Scoring, config: RunConfig, origin: Mapping[str, int] | None
    ) -> None:
        self.sampler, self.scoring, self.size = sampler, scoring, sampler.group_size
        self.sampling = DynamicSampling(config.prompts_per_step, config.most_groups)
        self.scales = parse_scales(config.advantage_scale)
        steps = rollout_steps(config) * self.sampling.limit
        self.order = training_order(list(sampler.problems), config, steps, origin)

    def save(self, checkpoint: Path) -> None:
        write_json(checkpoint / STATE, self.sampling.state())

    def load(self, checkpoint: Path) -> None:
        self.sampling.restore(read_json(checkpoint / STATE))

    def draw(self, step: int, record: StepRecord) -> Drawn:
        """Generate one step's groups. The metrics are of all groups that were judged, with what drawing them cost."""
        problems, grading = self.sampler.problems, self.sampler.grader.begin([])
        rows: list[int] = []  # the problem of each
        prompts: list[list[int]] = []
        finished: dict[int, Completion] = {}
        missing: list[int] = []  # completions of every group that are still to come

        def draw(count: int) -> list[list[int]]:
            first = self.sampling.position + len(missing)
            chosen = self.order[first : first + count]
            new = [index for index in chosen for _ in range(self.size)]
            missing.extend([self.size] * count)
            rows.extend(new)
            grading.expect([problems[index] for index in new])
            asked = self.sampler.prompts(chosen) if new else []
            prompts.extend(asked)
            return asked

        def keep(row: int, completion: Completion) -> None:
            finished[row] = completion
            missing[row // self.size] -= 1
            if not missing[row // self.size]:
                self.sampling.generated(row // self.size)

        def has_signal(group: int) -> bool:
            members = self._rows_of([group])
            completions = [finished[row] for row in members]
            return self.has_signal([problems[rows[row]] for row in members], completions, grading.collect(members))

        first = draw(self.sampling.start(has_signal))
        completions, sampled = self.sampler.sample(
            step, record, grading, first, keep, lambda idle: draw(self.sampling.more(idle))
        )
        batch = self.sampling.finish()
        kept = self._rows_of(batch.groups)
        judged = grading.collect(range(batch.judged * self.size))
        metrics = sampled | batch.metrics | verdict_metrics(judged)
        chosen = [completions[row] for row in kept]
        of_rows, of_prompts = [rows[row] for row in kept], [prompts[row] for row in kept]
        return Drawn(of_rows, of_prompts, chosen, self.sampler.versions(chosen), grading, kept, metrics)

    def has_signal(self, problems: list[Problem], completions: list[Completion], verdicts: list[Verdict]) -> bool:
        """Whether a group would be trained: its rewards differ, not every completion is masked, and its advantages are
        not scaled to nothing."""
        if not advantage_scale(problems[0], self.scales):
            return False
        texts = [self.sampler.text(completion) for completion in completions]
        _, totals = self.scoring.scores(problems, completions, texts, verdicts)
        trained = ~torch.tensor(self.scoring.masked(completions))
        return bool(without_equal_groups(trained.float(), reward_tensor(totals), len(completions)).any())

    def _rows_of(self, groups: list[int]) -> list[int]:
        return [row for group in groups for row in range(group * self.size, (group + 1) * self.size)]
