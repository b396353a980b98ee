"""Evaluation: sample n completions a problem, grade them as they finish, estimate pass@k with an interval."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.grading import StreamingGrader, verdict_metrics
from pipeline.prompts import code_messages
from pipeline.rollout import Completion, RolloutEngine, Sampling
from pipeline.statistics import mean_interval, pass_at_k
from rewards.problem import Problem
from rewards.scoring import score
from rewards.verdict import Status, Verdict


@dataclass(frozen=True)
class Evaluation:
    """Graded completions: `verdicts_P_S[p][s]` is the verdict of sample s of problem p; texts alike."""

    problems: Sequence[Problem]
    verdicts_P_S: list[list[Verdict]]
    texts_P_S: list[list[str]]
    seconds: float
    tokens: int

    def pass_at(self, k: int) -> dict[str, float | int]:
        """{pass_at_k, n, low, high}: the mean over problems, n completions graded, a 95 % bootstrap interval.

        Completions without a verdict (a fault of the grader) are left out; so are problems with fewer than k others.
        """
        values, n = [], 0
        for verdicts in self.verdicts_P_S:
            graded = [v for v in verdicts if v.status is not Status.NO_VERDICT]
            n += len(graded)
            if len(graded) >= k:
                values.append(pass_at_k(len(graded), sum(v.status is Status.ACCEPTED for v in graded), k))
        if not values:
            raise ValueError(f"pass@{k}: no problem has {k} graded completions")
        low, high = mean_interval(values)
        return {f"pass_at_{k}": sum(values) / len(values), "n": n, "low": low, "high": high}

    def summary(self, ks: Sequence[int], reward: str, compile_credit: float) -> dict[str, Any]:
        """The content of `eval.json`."""
        verdicts = [v for row in self.verdicts_P_S for v in row]
        scores = [s for v in verdicts if (s := score(v, reward, compile_credit)) is not None]
        metrics = verdict_metrics(verdicts)
        return {
            **{f"pass@{k}": self.pass_at(k) for k in ks},
            "problems": len(self.problems),
            "samples_per_problem": len(self.verdicts_P_S[0]),
            "compile_rate": metrics["compile_rate"],
            "mean_reward": sum(scores) / max(1, len(scores)),
            "verdicts": metrics["verdicts"],
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.tokens / self.seconds),
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a completion, for `rollouts/`."""
        for problem, verdicts, texts in zip(self.problems, self.verdicts_P_S, self.texts_P_S, strict=True):
            for sample, (verdict, text) in enumerate(zip(verdicts, texts, strict=True)):
                yield {
                    "problem": problem.id,
                    "sample": sample,
                    "completion": text,
                    "verdict": verdict.status.name,
                    "passed": verdict.passed,
                    "total": verdict.total,
                }


def prompt_ids(tokenizer: Any, problems: Sequence[Problem]) -> list[list[int]]:
    """Token ids of every problem's rendered chat prompt, ready for a completion."""
    messages = [code_messages(problem) for problem in problems]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def fitting_problems(tokenizer: Any, problems: Sequence[Problem], limit: int) -> tuple[list[Problem], int]:
    """The problems whose prompts fit into `limit` tokens, never truncated, and how many were dropped."""
    lengths = [len(ids) for ids in prompt_ids(tokenizer, problems)]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= limit]
    return kept, len(problems) - len(kept)


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
    start = time.perf_counter()
    prompts = [ids for ids in prompt_ids(tokenizer, problems) for _ in range(samples)]
    rows = [problem for problem in problems for _ in range(samples)]
    texts = [""] * len(rows)
    grader.begin(rows, on_graded)

    def submit(row: int, completion: Completion) -> None:
        texts[row] = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        grader.submit(row, texts[row])

    completions = engine.generate(prompts, sampling, submit)
    verdicts = grader.collect()
    return Evaluation(
        problems=problems,
        verdicts_P_S=[verdicts[i : i + samples] for i in range(0, len(rows), samples)],
        texts_P_S=[texts[i : i + samples] for i in range(0, len(rows), samples)],
        seconds=time.perf_counter() - start,
        tokens=sum(len(completion.token_ids) for completion in completions),
    )
