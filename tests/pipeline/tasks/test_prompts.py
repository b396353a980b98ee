"""Prompts: what a template shows of a problem, and which templates are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import ConfigError
from pipeline.tasks import PROMPTS, TASKS
from pipeline.tasks.prompts import Prompt, choose_prompt
from rewards.problem import Problem, Test

PROBLEM = Problem("a", "Costs $5 and ${6}.", (Test("1\n", "2\n", True), Test("secret", "3")), time_limit=1.5)


def choose(template: str | None, system: str | None = None) -> Prompt:
    return choose_prompt(template, system, TASKS["code"].prompt, PROMPTS)


def test_the_default_form_of_code_prompts() -> None:
    """The starter is trained on this form: any change makes it useless."""
    assert TASKS["code"].prompt.messages(PROBLEM) == [
        {"role": "system", "content": "You are an expert competitive programmer."},
        {
            "role": "user",
            "content": "Costs $5 and ${6}.\n\n## Sample 1\nInput:\n```\n1\n```\nOutput:\n```\n2\n```\n\n"
            "Answer with one C++17 program in a ```cpp block.",
        },
    ]


@pytest.mark.parametrize("name", PROMPTS)
def test_every_template_shows_the_problem(name: str) -> None:
    problem = Problem("a", "The story.", (Test("hidden", "x"),), numbers=(3, 5), answer="8")
    text = "\n".join(message["content"] for message in PROMPTS[name].messages(problem))
    assert ("The story." in text) or ("3, 5" in text and "8" in text)
    assert "hidden" not in text and "$" not in text


def test_names_and_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("In $time_limit s and $memory_limit MB, in $language, for $$1:\n$statement\n{braces} stay\n")
    prompt = choose(str(path))
    system, user = prompt.messages(PROBLEM)
    assert system["content"] == PROMPTS["direct"].system
    assert user["content"].startswith("In 1.5 s and 256 MB, in C++17, for $1:\nCosts $5") and user["content"].endswith(
        "stay"
    )
    assert choose("reasoning", "Be brief.").messages(PROBLEM)[0]["content"] == "Be brief."
    assert [m["role"] for m in choose(None, "").messages(PROBLEM)] == ["user"]


@pytest.mark.parametrize(
    "text, why",
    [("no problem", "does not contain"), ("$statement $wings", r"\$wings"), ("$statement costs $ 5", "lone")],
)
def test_unusable_templates(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why):
        choose(str(path))
    with pytest.raises(ConfigError, match="neither a file nor one of direct"):
        choose("nothing")
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        choose(str(path))
