"""Rollouts of the policy that is being trained: the engine is given `v`, and what it completes goes to the graders."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from adapters import TinyLoRA
from pipeline.rollout import Completion, More, OnFinished, RolloutEngine, Sampling, no_more, sampled_entropy
from pipeline.rollout.streaming import StreamingGrader


@dataclass
class StepRecord:
    """What one step measured, filled while it runs; `seconds` per phase."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    values: dict[str, Any] = field(default_factory=dict)


class PolicySampler:
    """Samples from `bank` as it is. sampling: how; its seed is the run's. text: of a completion, to be graded."""

    def __init__(
        self,
        engine: RolloutEngine,
        bank: TinyLoRA,
        grader: StreamingGrader,
        sampling: Sampling,
        text: Callable[[Completion], str],
    ) -> None:
        self.engine, self.bank, self.grader, self.sampling, self.text = engine, bank, grader, sampling, text
        self._served = -1  # the step whose policy the engine has

    def sample(
        self,
        step: int,
        record: StepRecord,
        prompts: list[list[int]],
        on_finished: OnFinished = lambda row, completion: None,
        more: More = no_more,
    ) -> list[Completion]:
        """One generation of step `step`, as of `RolloutEngine`; the grader must expect its rows. What is waited for
        verdicts meanwhile is not counted as generation."""
        if step != self._served:
            report = self.engine.refresh(self.bank.v.detach())
            record.seconds["refresh"] += report.seconds
            record.values["kept_share"] = report.kept
            self._served = step
        start = time.perf_counter()

        def finished(row: int, completion: Completion) -> None:
            self.grader.submit(row, self.text(completion))
            on_finished(row, completion)

        sampling = replace(self.sampling, seed=self.sampling.seed * 1_000_003 + step)
        completions = self.engine.generate(prompts, sampling, finished, more)
        seconds = time.perf_counter() - start - self.grader.waited
        record.seconds["generate"] += seconds
        tokens = sum(len(completion.token_ids) for completion in completions)
        record.values |= {"tokens": tokens, "tokens_per_second": tokens / seconds}
        record.values["entropy"] = sampled_entropy(completions)
        return completions
