"""Competitive programming: a C++ program in a fenced block, compiled and run on the problem's tests."""

from __future__ import annotations

from typing import Any

from pipeline.tasks.prompts import Prompt
from pipeline.tasks.task import Generator, Reward, Task, fenced_solution, has_tests
from rewards.extraction import extract_source
from rewards.grader.harness import wanted_function
from rewards.problem import Problem
from rewards.scoring import score

SYSTEM_PROMPT = "You are an expert competitive programmer."


def _problems(*arguments: Any) -> list[Problem]:
    from data.starter.generator import problems

    return problems(*arguments)


def _worked(count: int, seed: int) -> list[Problem]:
    from data.starter.worked import worked_problems

    return worked_problems(count, seed)


PROMPTS = {
    "direct": Prompt("$statement\n\nAnswer with one $language program in a ```$fence block.", SYSTEM_PROMPT),
    "reasoning": Prompt(
        "Solve this problem of a programming contest. Time limit: $time_limit s, memory limit: $memory_limit MB.\n\n"
        "$statement\n\n"
        "First think step by step, in a few sentences: what is asked, which method is fast enough, which cases are "
        "special. Then write the whole solution as one $language program in a ```$fence block. It reads standard "
        "input and writes standard output.",
        "You are an expert competitive programmer. Your programs compile and are right.",
    ),
    "livecodebench": Prompt(
        "### Question:\n$statement\n\n### Format:\nRead the input from standard input, solve the problem and write the "
        "answer to standard output. Put your program between these marks.\n```$fence\n// YOUR CODE HERE\n```\n\n"
        "### Answer: (in the format above, with the marks)",
        "You are an expert C++ programmer. You are given a question and write a right program that answers it and "
        "passes all tests.",
    ),
    "chinese": Prompt(
        "请解答下面的算法竞赛题目。\n\n$statement\n\n请只给出一个完整的 $language 程序,放在一个 ```$fence 代码块中。",
        "你是一名算法竞赛专家,直接给出正确的 C++ 代码。",
    ),
}
TASK = Task(
    name="code",
    prompts=PROMPTS,
    extract=lambda completion, problem: extract_source(completion, problem.language, wanted_function(problem)),
    rewards=(Reward("code_reward", 1.0, of_verdict=lambda v, config: score(v, config.reward, config.compile_credit)),),
    target=fenced_solution,
    gradable=has_tests,
    advice="give a JSON-lines file of problems, or 'starter' for generated ones",
    language="cpp",
    generator=Generator("starter", _problems, _worked, default="starter"),
)
