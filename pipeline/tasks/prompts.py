"""From a problem to the chat messages the policy is asked with.

A template is a text with `$names` and a system prompt; the model's own chat template renders the messages later. The
samples are the problem's public tests, put behind the statement in one fixed form, so that every data set is asked
alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

from pipeline.config import ConfigError
from rewards.problem import Problem

SYSTEM_PROMPT = "You are an expert competitive programmer."
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
    "countdown": Prompt(
        "Using the numbers $numbers, make an equation that equals $target. Use each number exactly once, with +, -, *, "
        "/ and parentheses.\nThink between <think> and </think>, then give the equation between <answer> and </answer> "
        "on the next line, for example <answer>(1 + 2) * 3 = 9</answer>.",
        "You reason first and answer then.",
    ),
    "gsm8k": Prompt(
        "$statement",
        "Answer in this form:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>\nThe answer is a number alone.",
    ),
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


def choose_prompt(template: str | None, system: str | None, default: str) -> Prompt:
    """The prompt of a name in `PROMPTS` or of a text file, with the system prompt replaced where one is given.

    Raises `ConfigError` for a name that is neither, and for a text that could not show the problem.
    """
    name = template or default
    if name in PROMPTS:
        prompt = PROMPTS[name]
    elif Path(name).is_file():
        try:
            text = Path(name).read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"--template {name}: not a text in UTF-8 ({error.reason})") from None
        prompt = Prompt(text, PROMPTS[default].system)
    else:
        raise ConfigError(f"--template {name}: neither a file nor one of {', '.join(PROMPTS)}")
    found = Template(prompt.text)
    names = set(found.get_identifiers())
    if not found.is_valid() or names - set(PLACEHOLDERS):
        wrong = ", ".join(f"${n}" for n in sorted(names - set(PLACEHOLDERS))) or "a lone $ (write $$)"
        raise ConfigError(f"--template {name}: {wrong} is not known; use ${', $'.join(PLACEHOLDERS)}")
    if not names & {"statement", "numbers"}:
        raise ConfigError(f"--template {name}: the text does not hold $statement, so the problem would not be shown")
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


def code_messages(problem: Problem) -> list[dict[str, str]]:
    """Chat messages that ask for one C++ program in one fenced block: the default of the task `code`."""
    return PROMPTS["direct"].messages(problem)
