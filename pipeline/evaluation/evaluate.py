"""Evaluation: sample n completions a problem, grade them as they finish, estimate pass@k with an interval.

One policy at a time; `pipeline/evaluation/run.py` compares two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import ConfigError, RunConfig
from pipeline.evaluation.statistics import mean_interval, pass_values
from pipeline.rollout import Completion, RolloutEngine, Sampling
from pipeline.rollout.rollouts import verdict_fields
from pipeline.rollout.streaming import StreamingGrader, verdict_metrics
from pipeline.tasks import Scores, Task, means
from pipeline.tasks.code import TASK as CODE
from rewards.problem import Problem
from rewards.verdict import Status, Verdict

EVALUATION_SEED = 7_000_003


@dataclass(frozen=True)
class Evaluation:
    """Graded completions: `verdicts_P_S[p][s]` is the verdict of sample s of problem p; texts and tokens alike.

    `max_tokens` is the length at which completions were cut.
    """

    problems: Sequence[Problem]
    verdicts_P_S: list[list[Verdict]]
    texts_P_S: list[list[str]]
    tokens_P_S: list[list[int]]
    max_tokens: int
    seconds: float
    task: Task = CODE

    def counts(self) -> list[tuple[int, int]]:
        """(accepted, graded) completions of each problem. What the grader failed on counts for neither."""
        graded = ([v for v in verdicts if v.status is not Status.NO_VERDICT] for verdicts in self.verdicts_P_S)
        return [(sum(v.accepted for v in row), len(row)) for row in graded]

    def clusters(self) -> list[str]:
        """The cluster of each problem; one that names none is a cluster of its own."""
        return [problem.cluster or problem.id for problem in self.problems]

    def summary(self, ks: Sequence[int], config: RunConfig) -> dict[str, Any]:
        """A policy's part of `eval.json`. pass@k is None where no problem has k graded completions."""
        verdicts = [v for row in self.verdicts_P_S for v in row]
        tokens = [n for row in self.tokens_P_S for n in row]
        scores = self._scores(config)
        totals = [total for total in self.task.totals(scores) if total is not None]
        metrics = verdict_metrics(verdicts)
        counts = self.counts()
        tests = [v.passed / v.total for v in verdicts if v.total and v.status is not Status.NO_VERDICT]
        return {
            **{f"pass@{k}": pass_at(counts, k, self.clusters()) for k in ks},
            "problems": len(self.problems),
            "samples_per_problem": len(self.verdicts_P_S[0]),
            "compile_rate": metrics["compile_rate"],
            "mean_reward": sum(totals) / max(1, len(totals)),
            "rewards": means(scores),
            "tests_passed": sum(tests) / max(1, len(tests)),
            "verdicts": metrics["verdicts"],
            "truncated": sum(n >= self.max_tokens for n in tokens) / max(1, len(tokens)),
            "mean_tokens": sum(tokens) / max(1, len(tokens)),
            "by_source": self._by([problem.source for problem in self.problems]),
            "by_difficulty": self._by([problem.difficulty for problem in self.problems]),
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(sum(tokens) / self.seconds),
        }

    def _by(self, labels: Sequence[str]) -> dict[str, Any]:
        """pass@1 of the problems of each label, even if all are of one cluster; {} where nothing is labelled."""
        groups: dict[str, list[tuple[tuple[int, int], str]]] = {}
        for label, count, cluster in zip(labels, self.counts(), self.clusters(), strict=True):
            if count[1]:
                groups.setdefault(label or "unknown", []).append((count, cluster))
        if set(groups) <= {"unknown"}:
            return {}
        found = {}
        for label, group in sorted(groups.items()):
            clusters = [cluster for _, cluster in group]
            value = pass_at([count for count, _ in group], 1, clusters if len(set(clusters)) > 1 else None)
            found[label] = {**(value or {}), "problems": len(group)}
        return found

    def _scores(self, config: RunConfig) -> Scores:
        texts = [text for row in self.texts_P_S for text in row]
        problems = [problem for problem, row in zip(self.problems, self.texts_P_S, strict=True) for _ in row]
        return self.task.scores(problems, texts, [v for row in self.verdicts_P_S for v in row], config)

    def rows(self, config: RunConfig) -> Iterator[dict[str, Any]]:
        """One record a completion, for `rollouts/`."""
        rewards = iter(self.task.totals(self._scores(config)))
        columns = (self.problems, self.verdicts_P_S, self.texts_P_S, self.tokens_P_S)
        for problem, verdicts, texts, tokens in zip(*columns, strict=True):
            for sample, (verdict, text, length) in enumerate(zip(verdicts, texts, tokens, strict=True)):
                row = {"problem": problem.id, "sample": sample, "completion": text, "tokens": length}
                yield row | verdict_fields(verdict) | {"reward": next(rewards)}


def pass_at(
    counts: Sequence[tuple[int, int]], k: int, clusters: Sequence[str] | None = None
) -> dict[str, float | int] | None:
    """{pass_at_k, n, low, high} from (accepted, graded) of each problem: the mean over problems, n completions graded,
    a 95 % interval that knows the problems' clusters. Problems with fewer than k graded completions are left out; None
    where that are all."""
    values = pass_values(counts, k)
    known = [value for value in values if value is not None]
    if not known:
        return None
    kept = [c for c, value in zip(clusters, values, strict=True) if value is not None] if clusters else None
    low, high = mean_interval(known, clusters=kept)
    return {f"pass_at_{k}": sum(known) / len(known), "n": sum(n for _, n in counts), "low": low, "high": high}


def prompt_ids(tokenizer: Any, problems: Sequence[Problem], task: Task = CODE) -> list[list[int]]:
    """Token ids of every problem's rendered chat prompt, ready for a completion."""
    messages = [task.prompt.messages(problem) for problem in problems]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def fitting_problems(
    tokenizer: Any, problems: Sequence[Problem], limit: int, task: Task = CODE
) -> tuple[list[Problem], int]:
    """The problems whose prompts fit into `limit` tokens, never truncated, and how many were dropped."""
    lengths = [len(ids) for ids in prompt_ids(tokenizer, problems, task)] if problems else []
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= limit]
    return kept, len(problems) - len(kept)


def evaluated_problems(
    tokenizer: Any, problems: Sequence[Problem], limit: int, task: Task = CODE
) -> tuple[list[Problem], int]:
    """`fitting_problems` of an evaluation. Raises `ConfigError` where none fits."""
    kept, dropped = fitting_problems(tokenizer, problems, limit, task)
    if not kept:
        raise ConfigError(f"--max-prompt-length {limit}: the prompts of all {dropped} problems are longer")
    return kept, dropped


class Evaluating:
    """An evaluation whose completions are generated, and may still be being graded."""

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: Any,
        grader: StreamingGrader,
        problems: Sequence[Problem],
        samples: int,
        sampling: Sampling,
        on_graded: Callable[[Verdict], None] = lambda verdict: None,
    ) -> None:
        """Generate; arguments as of `evaluate`."""
        start = time.perf_counter()
        prompts = [ids for ids in prompt_ids(tokenizer, problems, grader.task) for _ in range(samples)]
        rows = [problem for problem in problems for _ in range(samples)]
        self._texts = [""] * len(rows)
        self._grading = grader.begin(rows, on_graded)

        def submit(row: int, completion: Completion) -> None:
            self._texts[row] = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            self._grading.submit(row, self._texts[row])

        self._lengths = [len(one.token_ids) for one in engine.generate(prompts, sampling, submit)]
        self._problems, self._samples, self._task = problems, samples, grader.task
        self._max_tokens, self._start, self._generated = sampling.max_tokens, start, time.perf_counter()

    def result(self) -> Evaluation:
        """Wait for the verdicts. `seconds` run to the last of them."""
        verdicts, samples, count = self._grading.collect(), self._samples, len(self._lengths)
        return Evaluation(
            problems=self._problems,
            verdicts_P_S=[verdicts[i : i + samples] for i in range(0, count, samples)],
            texts_P_S=[self._texts[i : i + samples] for i in range(0, count, samples)],
            tokens_P_S=[self._lengths[i : i + samples] for i in range(0, count, samples)],
            max_tokens=self._max_tokens,
            seconds=max(self._generated, self._grading.last_verdict) - self._start,
            task=self._task,
        )


def evaluate(
    engine: RolloutEngine,
    tokenizer: Any,
    grader: StreamingGrader,
    problems: Sequence[Problem],
    samples: int,
    sampling: Sampling,
    on_graded: Callable[[Verdict], None] = lambda verdict: None,
) -> Evaluation:
    """Sample and grade `samples` completions of every problem with the engine's current policy.

    `on_graded` is called once per verdict, from this thread or a grader's.
    """
    return Evaluating(engine, tokenizer, grader, problems, samples, sampling, on_graded).result()
