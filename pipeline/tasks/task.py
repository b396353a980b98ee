"""What a task is: how problems are asked, how an answer is found in a completion, how it is judged and rewarded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.config import RunConfig
from pipeline.tasks.prompts import Prompt
from rewards.grader.harness import grade
from rewards.grader.pool import GraderPool
from rewards.problem import Problem
from rewards.verdict import Status, Verdict

Scores = dict[str, list[float | None]]


@dataclass(frozen=True)
class Reward:
    """One part of a task's reward and its weight in the sum.

    Either `of_text`, a function with TRL's signature, or `of_verdict`, which takes the run's settings, too. None as a
    reward masks it."""

    name: str
    weight: float
    of_text: Callable[..., list[float]] | None = None
    of_verdict: Callable[[Verdict, RunConfig], float | None] | None = None


@dataclass(frozen=True)
class Generator:
    """Problems that are made when a run needs them, not read from a file.

    name: what `--dataset` calls them. problems: `(split, count, seed, purpose)` → problems, as
    `data.sources.countdown.generate`. worked: `(count, seed)` → training problems with a solution to imitate.
    default: whether a run without `--dataset` takes them with the starter model alone, or with any model."""

    name: str
    problems: Callable[..., list[Problem]]
    worked: Callable[[int, int], list[Problem]]
    default: Literal["starter", "always"]


@dataclass(frozen=True)
class Task:
    """A kind of problem.

    prompts: the templates that it brings, by name; the first is its default. extract: the answer in a completion, or
    None. target: a right completion, for supervised training. gradable: whether a problem has what judging needs.
    advice: what `--dataset` may be. is_right: whether an answer is right; None where programs are run. language: of
    programs, for which a toolchain must be found before a model is loaded. columns: what `of_text` rewards need besides
    the completion. source: the data set (see `data/sources`) whose records `--dataset` may hold as they are. variants:
    the task as it is where one of its other templates is chosen. chosen: the prompt of a run, see `task_of`."""

    name: str
    prompts: Mapping[str, Prompt]
    extract: Callable[[str, Problem], str | None]
    rewards: tuple[Reward, ...]
    target: Callable[[Problem], str]
    gradable: Callable[[Problem], bool]
    advice: str
    is_right: Callable[[str, Problem], bool] | None = None
    language: str = ""
    columns: Callable[[Problem], dict[str, Any]] = lambda problem: {}
    source: str = ""
    generator: Generator | None = None
    variants: Mapping[str, Task] = field(default_factory=dict)
    chosen: Prompt | None = None

    @property
    def prompt(self) -> Prompt:
        """The prompt of a run; without one, the task's default."""
        return self.chosen or next(iter(self.prompts.values()))

    @property
    def runs_programs(self) -> bool:
        return self.is_right is None

    def grade(self, pool: GraderPool | None, completion: str, problem: Problem) -> Future[Verdict]:
        """The verdict of a completion; from the pool, or at once."""
        answer = self.extract(completion, problem)
        if self.is_right is None:
            assert pool is not None
            return grade(pool, answer, problem)
        done: Future[Verdict] = Future()
        if answer is None:
            done.set_result(Verdict(Status.NO_CODE, total=1))
        else:
            right = self.is_right(completion, problem)
            status = Status.ACCEPTED if right else Status.WRONG_ANSWER
            done.set_result(Verdict(status, passed=int(right), total=1, compiled=True))
        return done

    def scores(
        self,
        problems: Sequence[Problem],
        completions: Sequence[str],
        verdicts: Sequence[Verdict],
        config: RunConfig,
        **more: Sequence[Any],
    ) -> Scores:
        """Every reward of every completion, by the reward's name. more: what else `of_text` rewards are given, such as
        `completion_ids`."""
        columns = column_lists([self.columns(problem) for problem in problems])
        found: Scores = {}
        for reward in self.rewards:
            if reward.of_text is not None:
                texts = {"prompts": [""] * len(completions), "completions": list(completions)}
                found[reward.name] = list(reward.of_text(**texts, **columns, **more))
            elif reward.of_verdict is not None:
                found[reward.name] = [reward.of_verdict(verdict, config) for verdict in verdicts]
        return found

    def totals(self, scores: Mapping[str, Sequence[float | None]]) -> list[float | None]:
        """The weighted sum of each completion, as TRL forms it: a masked part counts nothing, None if all are
        masked."""
        weights = {reward.name: reward.weight for reward in self.rewards}
        rows = zip(
            *(zip([weights[name]] * len(values), values, strict=True) for name, values in scores.items()), strict=True
        )
        parts = [[weight * value for weight, value in row if value is not None] for row in rows]
        return [sum(row) if row else None for row in parts]


def column_lists(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}


def means(scores: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """The mean of each reward over the completions that have it."""
    known = {name: [value for value in values if value is not None] for name, values in scores.items()}
    return {name: sum(values) / max(1, len(values)) for name, values in known.items()}


def rewards_of(module: Any, weights: Mapping[str, float]) -> tuple[Reward, ...]:
    """The reward functions of a module in `rewards/`, by name, each with its weight."""
    return tuple(Reward(name, weight, of_text=getattr(module, name)) for name, weight in weights.items())


def has_tests(problem: Problem) -> bool:
    return bool(problem.tests)


def fenced_solution(problem: Problem) -> str:
    return f"```{problem.language}\n{problem.solution.rstrip()}\n```"
