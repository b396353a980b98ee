"""Countdown: reach a target from three or four numbers with + - * /, each number used once."""

from __future__ import annotations

import re
from typing import Any

from pipeline.tasks.prompts import Prompt
from pipeline.tasks.task import Generator, Task, rewards_of
from rewards import countdown
from rewards.problem import Problem


def _problems(*arguments: Any) -> list[Problem]:
    from data.sources.countdown import generate

    return generate(*arguments)


def _is_right(completion: str, problem: Problem) -> bool:
    answer = countdown.extract_answer(completion)
    return answer is not None and countdown.is_solution(answer, problem.numbers, problem.answer)


def _target(problem: Problem) -> str:
    reasoning = f"{problem.solution.partition('=')[0].strip()} makes {problem.answer}."
    return f"<think>{reasoning}</think>\n<answer>{problem.solution}</answer>"


PROMPT = Prompt(
    "Using the numbers $numbers, make an equation that equals $target. Use each number exactly once, with +, -, *, "
    "/ and parentheses.\nThink between <think> and </think>, then give the equation between <answer> and </answer> "
    "on the next line, for example <answer>(1 + 2) * 3 = 9</answer>.",
    "You reason first and answer then.",
)
TASK = Task(
    name="countdown",
    prompts={"countdown": PROMPT},
    extract=lambda completion, problem: countdown.extract_answer(completion),
    is_right=_is_right,
    rewards=rewards_of(countdown, {"format_reward": 1.0, "equation_reward": 1.0}),
    columns=lambda problem: {"nums": list(problem.numbers), "target": int(problem.answer)},
    target=_target,
    gradable=lambda problem: bool(problem.numbers) and re.fullmatch(r"-?[0-9]{1,18}", problem.answer) is not None,
    advice="give 'generated', or a file of rows with nums and target",
    source="countdown",
    generator=Generator(
        "generated", _problems, worked=lambda count, seed: _problems("train", count, seed), default="always"
    ),
)
