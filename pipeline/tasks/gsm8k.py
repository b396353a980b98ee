"""Grade-school mathematics (GSM8K, arXiv 2110.14168): a number in an answer block, compared with the right one."""

from __future__ import annotations

from pipeline.tasks.prompts import Prompt
from pipeline.tasks.task import Task, rewards_of
from rewards import gsm8k
from rewards.problem import Problem


def _extract(completion: str, problem: Problem) -> str | None:
    found = gsm8k.extract_answer(completion)
    return None if found is None else str(found)


PROMPT = Prompt(
    "$statement",
    "Answer in this form:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>\nThe answer is a number alone.",
)
TASK = Task(
    name="gsm8k",
    prompts={"gsm8k": PROMPT},
    extract=_extract,
    is_right=lambda completion, problem: gsm8k.is_correct(completion, problem.answer),
    rewards=rewards_of(
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
    advice="give openai/gsm8k, or a folder, parquet or JSON-lines file of its rows",
    source="gsm8k",
)
