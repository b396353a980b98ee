"""From a problem to the chat messages the policy is asked with.

The samples are the problem's public tests, appended in one fixed form, so that every data set is asked alike.
"""

from __future__ import annotations

from rewards.problem import Problem

SYSTEM_PROMPT = "You are an expert competitive programmer."
MAX_SAMPLES = 2
MAX_SAMPLE_CHARACTERS = 1000


def render_statement(problem: Problem) -> str:
    """The statement, then its first public tests as Markdown samples (at most two, the short ones only)."""
    parts = [problem.statement.strip()]
    shown = [t for t in problem.samples if len(t.input) + len(t.output) <= MAX_SAMPLE_CHARACTERS][:MAX_SAMPLES]
    for number, test in enumerate(shown, 1):
        parts.append(
            f"## Sample {number}\nInput:\n```\n{test.input.strip()}\n```\nOutput:\n```\n{test.output.strip()}\n```"
        )
    return "\n\n".join(parts)


def code_messages(problem: Problem) -> list[dict[str, str]]:
    """Chat messages that ask for one C++ program in one fenced block."""
    return [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": f"{render_statement(problem)}\n\nAnswer with one C++17 program in a ```cpp block."},
    ]
