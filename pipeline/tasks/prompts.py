"""From a problem to the chat messages the policy is asked with.

A template is a text with `$names` and a system prompt; the model's own chat template renders the messages later. The
samples are the problem's public tests, put behind the statement in one fixed form, so that every data set is asked
alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from pipeline.config import ConfigError
from rewards.problem import Problem

MAX_SAMPLES = 2
MAX_SAMPLE_CHARACTERS = 1000
LANGUAGES = {"cpp": "C++17", "c": "C", "python": "Python 3", "q": "Q"}


@dataclass(frozen=True)
class Prompt:
    """`text` becomes the user's message, `system` (if any) the one before it. See `PLACEHOLDERS` for the names in
    it."""

    text: str
    system: str = ""

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """Chat messages for one problem."""
        user = Template(self.text).substitute(_values(problem))
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": user}]


PLACEHOLDERS = ("statement", "language", "fence", "time_limit", "memory_limit", "numbers", "target", "difficulty")


def choose_prompt(template: str | None, system: str | None, default: Prompt, known: Mapping[str, Prompt]) -> Prompt:
    """`default`, or the template of a name in `known` or of a text file; with the system prompt replaced where one is
    given.

    Raises `ConfigError` for a name that is neither, and for a text that could not show the problem.
    """
    name = template or ""
    if not template:
        prompt = default
    elif name in known:
        prompt = known[name]
    elif Path(name).is_file():
        try:
            text = Path(name).read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"--template {name}: not UTF-8 text ({error.reason})") from None
        prompt = Prompt(text, default.system)
    else:
        raise ConfigError(f"--template {name}: neither a file nor one of {', '.join(known)}")
    found = Template(prompt.text)
    names = set(found.get_identifiers())
    if not found.is_valid() or names - set(PLACEHOLDERS):
        wrong = ", ".join(f"${n}" for n in sorted(names - set(PLACEHOLDERS))) or "a lone $ (write $$)"
        raise ConfigError(f"--template {name}: {wrong} is unknown; use ${', $'.join(PLACEHOLDERS)}")
    if not names & {"statement", "numbers"}:
        raise ConfigError(f"--template {name}: the text does not contain $statement, so the problem would not be shown")
    return prompt if system is None else Prompt(prompt.text, system)


def _values(problem: Problem) -> dict[str, str]:
    return {
        "statement": render_statement(problem),
        "language": LANGUAGES.get(problem.language, problem.language),
        "fence": problem.language,
        "time_limit": f"{problem.time_limit:g}",
        "memory_limit": f"{problem.memory_limit / 1e6:g}",
        "numbers": ", ".join(map(str, problem.numbers)),
        "target": problem.answer,
        "difficulty": problem.difficulty,
    }


def render_statement(problem: Problem) -> str:
    """The statement, then its first public tests as Markdown samples (at most two, the short ones only)."""
    parts = [problem.statement.strip()]
    shown = [t for t in problem.samples if len(t.input) + len(t.output) <= MAX_SAMPLE_CHARACTERS][:MAX_SAMPLES]
    for number, test in enumerate(shown, 1):
        parts.append(
            f"## Sample {number}\nInput:\n```\n{test.input.strip()}\n```\nOutput:\n```\n{test.output.strip()}\n```"
        )
    return "\n\n".join(parts)
