"""Tasks: what is asked, how an answer is found in a completion, how it is judged and rewarded.

A task is a small object in `TASKS`. `code` and `q` are graded by running programs; `countdown` and `gsm8k` are judged
at once, and still give a `Verdict`, so that evaluation, pass rates and rollout files are the same for all tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import RunConfig
from pipeline.tasks.prompts import PROMPTS, Prompt, choose_prompt
from rewards import countdown, gsm8k, q
from rewards.extraction import extract_source
from rewards.grader.harness import grade
from rewards.grader.pool import GraderPool
from rewards.problem import Problem
from rewards.scoring import score
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
class Task:
    """A kind of problem.

    prompt: how problems are asked. source: the data set (see `data/sources`) whose records `--dataset` may hold as
    they are. extract: the answer in a completion, or None. is_right: whether an answer is right; None where programs
    are run. columns: what `of_text` rewards need beside the completion. target: a right completion, for supervised
    training. gradable: whether a problem has what judging needs."""

    name: str
    default_prompt: str
    extract: Callable[[str, Problem], str | None]
    rewards: tuple[Reward, ...]
    target: Callable[[Problem], str]
    gradable: Callable[[Problem], bool]
    is_right: Callable[[str, Problem], bool] | None = None
    columns: Callable[[Problem], dict[str, Any]] = lambda problem: {}
    source: str = ""
    prompt: Prompt = PROMPTS["direct"]

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


def _fenced(problem: Problem) -> str:
    return f"```{problem.language}\n{problem.solution.rstrip()}\n```"


def _q_answer(problem: Problem) -> str:
    reasoning = "The tests say what the program must print."
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{problem.solution.strip()}\n</answer>"


def _texts(module: Any, weights: Mapping[str, float]) -> tuple[Reward, ...]:
    return tuple(Reward(name, weight, of_text=getattr(module, name)) for name, weight in weights.items())


def _decimal_answer(completion: str, problem: Problem) -> str | None:
    found = gsm8k.extract_answer(completion)
    return None if found is None else str(found)


CODE = Task(
    name="code",
    default_prompt="direct",
    extract=lambda completion, problem: extract_source(completion, problem.language),
    rewards=(Reward("code_reward", 1.0, of_verdict=lambda v, config: score(v, config.reward, config.compile_credit)),),
    target=_fenced,
    gradable=lambda problem: bool(problem.tests),
)
COUNTDOWN = Task(
    name="countdown",
    default_prompt="countdown",
    source="countdown",
    extract=lambda completion, problem: countdown.extract_answer(completion),
    is_right=lambda completion, problem: (
        (answer := countdown.extract_answer(completion)) is not None
        and countdown.is_solution(answer, problem.numbers, problem.answer)
    ),
    rewards=_texts(countdown, {"format_reward": 1.0, "equation_reward": 1.0}),
    columns=lambda problem: {"nums": list(problem.numbers), "target": int(problem.answer)},
    target=lambda problem: (
        f"<think>{problem.solution.partition('=')[0].strip()} makes {problem.answer}.</think>\n"
        f"<answer>{problem.solution}</answer>"
    ),
    gradable=lambda problem: bool(problem.numbers) and re.fullmatch(r"-?[0-9]{1,18}", problem.answer) is not None,
)
GSM8K = Task(
    name="gsm8k",
    default_prompt="gsm8k",
    source="gsm8k",
    extract=_decimal_answer,
    is_right=lambda completion, problem: gsm8k.is_correct(completion, problem.answer),
    rewards=_texts(
        gsm8k,
        {
            "correctness_reward": 2.0,
            "strict_format_reward": 1.0,
            "soft_format_reward": 1.0,
            "tag_count_reward": 1.0,
            "length_reward": 0.2,
            "repetition_penalty": 1.0,
        },
    ),
    columns=lambda problem: {"answer": problem.answer},
    target=lambda p: f"<reasoning>\n{p.solution}\n</reasoning>\n<answer>\n{p.answer}\n</answer>",
    gradable=lambda problem: gsm8k.parse_number(problem.answer) is not None,
)
Q = Task(
    name="q",
    default_prompt="q",
    source="q",
    extract=lambda completion, problem: q.extract_program(completion),
    rewards=(
        Reward("pass_rate", q.PASS_RATE_WEIGHT, of_verdict=lambda verdict, config: q.pass_rate(verdict)),
        Reward("perfect_bonus", q.PERFECT_BONUS, of_verdict=lambda verdict, config: q.perfect(verdict)),
    ),
    target=_fenced,
    gradable=lambda problem: bool(problem.tests),
)
Q_FORMAT = Reward("format_reward", 0.5, of_text=q.format_reward)  # where the template asks for the tags

TASKS = {task.name: task for task in (CODE, COUNTDOWN, GSM8K, Q)}


def task_of(config: RunConfig) -> Task:
    """The task of a run, with the prompt that its settings choose. Raises `ConfigError` for a template of no use."""
    task = TASKS[config.task]
    prompt = choose_prompt(config.template, config.system_prompt, task.default_prompt)
    if task is Q and config.template == "q-reasoning":
        task = replace(task, rewards=(*task.rewards, Q_FORMAT), target=_q_answer)
    return replace(task, prompt=prompt)
