"""Rollouts of the policy that is being trained: the engine is given `v`, and what it completes goes to the graders."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pipeline.evaluation.evaluate import prompt_ids
from pipeline.policy.loading import Policy
from pipeline.rollout import Completion, More, OnFinished, Sampling, no_more, sampled_entropy
from pipeline.rollout.streaming import Grading, StreamingGrader
from pipeline.training.timeline import Timeline
from rewards.problem import Problem


@dataclass
class StepRecord:
    """What one step measured, filled while it runs; `seconds` per phase, `rollouts` as they are written down,
    `distances` log p of the trained tokens less log p of those who drew them. timeline: of the run."""

    timeline: Timeline = field(default_factory=Timeline)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    values: dict[str, Any] = field(default_factory=dict)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    distances: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """The completions of a step, which may still be being graded; columns as of `Rollouts`. graded_rows: which rows of
    `grading` they are. metrics: of generating, and where they were chosen, of choosing them."""

    problems: list[int]
    prompts: list[list[int]]
    completions: list[Completion]
    versions: list[list[int]]
    grading: Grading
    graded_rows: Sequence[int]
    metrics: dict[str, Any] = field(default_factory=dict)


class PolicySampler:
    """Samples from the policy as it is. problems: those of the run. sampling: how; its seed is the run's."""

    def __init__(
        self, policy: Policy, grader: StreamingGrader, problems: Sequence[Problem], group_size: int, sampling: Sampling
    ) -> None:
        self.policy, self.grader, self.problems = policy, grader, problems
        self.group_size, self.sampling = group_size, sampling

    def serve(self, version: int, record: StepRecord) -> None:
        """Make `v` as it is, after `version` optimizer steps, the policy that is sampled from."""
        start = time.perf_counter()
        report = self.policy.serve(version)
        record.seconds["refresh"] += report.seconds
        record.values["kept_share"] = report.kept()
        record.timeline.add("refresh", start)

    def draw(self, step: int, record: StepRecord, problems: list[int]) -> Drawn:
        """One completion for each of `problems`, in whole groups, for the batch of `step`."""
        grading = self.grader.begin([self.problems[index] for index in problems])
        prompts = self.prompts(problems[:: self.group_size])
        completions, metrics = self.sample(step, record, grading, prompts)
        rows = range(len(problems))
        return Drawn(problems, prompts, completions, self.versions(completions), grading, rows, metrics)

    def prompts(self, problems: Sequence[int]) -> list[list[int]]:
        """Token ids of the prompts of a group for each of `problems`."""
        ids = prompt_ids(self.policy.tokenizer, [self.problems[index] for index in problems], self.grader.task)
        return [prompt for prompt in ids for _ in range(self.group_size)]

    def versions(self, completions: Sequence[Completion]) -> list[list[int]]:
        """The version of `v` that drew each token: that which the engine served throughout."""
        assert self.policy.version is not None
        return [[self.policy.version] * len(completion.token_ids) for completion in completions]

    def text(self, completion: Completion) -> str:
        return self.policy.tokenizer.decode(completion.token_ids, skip_special_tokens=True)

    def sample(
        self,
        step: int,
        record: StepRecord,
        grading: Grading,
        prompts: list[list[int]],
        on_finished: OnFinished = lambda row, completion: None,
        more: More = no_more,
    ) -> tuple[list[Completion], dict[str, float]]:
        """One generation by the policy that is served, as of `RolloutEngine`, with the random numbers of `step`, and
        its metrics; `grading` must expect its rows. What is waited for verdicts is not counted as generation."""
        start = time.perf_counter()

        def finished(row: int, completion: Completion) -> None:
            grading.submit(row, self.text(completion))
            on_finished(row, completion)

        sampling = replace(self.sampling, seed=self.sampling.seed * 1_000_003 + step)
        completions = self.policy.engine.generate(prompts, sampling, finished, more)
        record.timeline.add("generate", start)
        seconds = time.perf_counter() - start - grading.waited
        record.seconds["generate"] += seconds
        tokens = sum(len(completion.token_ids) for completion in completions)
        metrics = {"tokens": tokens, "tokens_per_second": tokens / seconds}
        return completions, metrics | {"entropy": sampled_entropy(completions)}
