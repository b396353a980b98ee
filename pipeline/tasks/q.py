"""Programs in Q, the language of kdb+, run on the problem's tests; needs a licensed `q`."""

from __future__ import annotations

from dataclasses import replace

from pipeline.tasks.prompts import Prompt
from pipeline.tasks.task import Reward, Task, fenced_solution, has_tests
from rewards import q
from rewards.problem import Problem

FORMAT = Reward("format_reward", 0.5, of_text=q.format_reward)


def _reasoned(problem: Problem) -> str:
    reasoning = "The tests say what the program must print."
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{problem.solution.strip()}\n</answer>"


PROMPTS = {
    "q": Prompt(
        "Problem:\n$statement\n\nAnswer with one Q program in a ```q block.",
        "You are an expert programmer in Q, the language of kdb+.",
    ),
    "q-reasoning": Prompt(
        "Problem:\n$statement",
        "You are an expert programmer in Q, the language of kdb+. Reason between <reasoning> and </reasoning>, then "
        "give the Q program between <answer> and </answer>.",
    ),
}
_DIRECT = Task(
    name="q",
    prompts=PROMPTS,
    extract=lambda completion, problem: q.extract_program(completion),
    rewards=(
        Reward("pass_rate", q.PASS_RATE_WEIGHT, of_verdict=lambda verdict, config: q.pass_rate(verdict)),
        Reward("perfect_bonus", q.PERFECT_BONUS, of_verdict=lambda verdict, config: q.perfect(verdict)),
    ),
    target=fenced_solution,
    gradable=has_tests,
    advice="give a folder of problems in Q, or the file that scripts/prepare_data.py made of it",
    language="q",
    source="q",
)
_REASONED = replace(_DIRECT, rewards=(*_DIRECT.rewards, FORMAT), target=_reasoned)
TASK = replace(_DIRECT, variants={"q-reasoning": _REASONED})
