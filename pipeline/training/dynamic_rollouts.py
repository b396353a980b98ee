"""The rollouts of a run with dynamic sampling: one generation a step that grows by groups (`dynamic_sampling.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config import RunConfig
from pipeline.rollout import Completion, More, OnFinished
from pipeline.rollout.streaming import StreamingGrader, verdict_metrics
from pipeline.run_folder import read_json
from pipeline.tasks import Task
from pipeline.tasks.problem_sets import training_order
from pipeline.training.dynamic_sampling import DynamicSampling
from pipeline.training.grpo import rollout_steps, rows_of
from pipeline.training.microbatch import without_equal_groups
from rewards.problem import Problem
from rewards.verdict import Status, Verdict
from storage.files import write_json

STATE = "dynamic_sampling.json"  # in a checkpoint


@dataclass(frozen=True)
class Drawn:
    """The batch of a step: rows as TRL takes them, their completions, and which of the grader's rows they are.
    metrics: of all groups that were judged, with what drawing them cost."""

    rows: list[dict[str, Any]]
    completions: list[Completion]
    graded_rows: list[int]
    metrics: dict[str, Any]


class DynamicRollouts:
    """Draws batches of groups with a signal. text: of a completion. ends: tokens that a whole completion ends with."""

    def __init__(
        self,
        problems: list[Problem],
        config: RunConfig,
        task: Task,
        grader: StreamingGrader,
        text: Callable[[Completion], str],
        ends: list[int],
        origin: Mapping[str, int] | None,
    ) -> None:
        self.problems, self.config, self.task, self.grader = problems, config, task, grader
        self.text, self.ends, self.size = text, ends, config.num_generations
        self.sampling = DynamicSampling(config.prompts_per_step, config.most_groups)
        self.order = training_order(problems, config, rollout_steps(config) * self.sampling.limit, origin)

    def save(self, checkpoint: Path) -> None:
        write_json(checkpoint / STATE, self.sampling.state())

    def load(self, checkpoint: Path) -> None:
        self.sampling.restore(read_json(checkpoint / STATE))

    def draw(
        self,
        tokenize: Callable[[list[Any]], list[list[int]]],
        generate: Callable[[list[list[int]], OnFinished, More], list[Completion]],
    ) -> Drawn:
        """Generate one step's groups. tokenize: chat prompts, those of a group one after another. generate(prompts,
        on_finished, more): as of `RolloutEngine`, handing every completion to the grader."""
        rows: list[dict[str, Any]] = []
        finished: dict[int, Completion] = {}
        missing: list[int] = []  # completions of every group that are still to come

        def draw(count: int) -> list[list[int]]:
            first = self.sampling.position + len(missing)
            new = rows_of(self.problems, self.config, self.order[first : first + count])
            new = [row for row in new for _ in range(self.size)]
            missing.extend([self.size] * count)
            rows.extend(new)
            self.grader.expect([self.problems[row["problem"]] for row in new])
            return tokenize([row["prompt"] for row in new]) if new else []

        def keep(row: int, completion: Completion) -> None:
            finished[row] = completion
            missing[row // self.size] -= 1
            if not missing[row // self.size]:
                self.sampling.generated(row // self.size)

        def has_signal(group: int) -> bool:
            members = self._rows_of([group])
            problems = [self.problems[rows[row]["problem"]] for row in members]
            return self.has_signal(problems, [finished[row] for row in members], self.grader.collect(members))

        self.grader.begin([])
        first = draw(self.sampling.start(has_signal))
        completions = generate(first, keep, lambda idle: draw(self.sampling.more(idle)))
        batch = self.sampling.finish()
        kept = self._rows_of(batch.groups)
        judged = self.grader.collect(range(batch.judged * self.size))
        metrics = batch.metrics | verdict_metrics(judged)
        return Drawn([rows[row] for row in kept], [completions[row] for row in kept], kept, metrics)

    def has_signal(self, problems: list[Problem], completions: list[Completion], verdicts: list[Verdict]) -> bool:
        """Whether a group would be trained: its rewards differ, and not every completion is masked."""
        ids = [completion.token_ids for completion in completions]
        texts = [self.text(completion) for completion in completions]
        scores = self.task.scores(problems, texts, verdicts, self.config, completion_ids=ids)
        totals = [
            None if verdict.status is Status.NO_VERDICT else total
            for verdict, total in zip(verdicts, self.task.totals(scores), strict=True)
        ]
        whole = [not self.config.mask_truncated or tokens[-1] in self.ends for tokens in ids]
        return bool(without_equal_groups(torch.tensor(whole).float(), totals, len(ids)).any())

    def _rows_of(self, groups: list[int]) -> list[int]:
        return [row for group in groups for row in range(group * self.size, (group + 1) * self.size)]
