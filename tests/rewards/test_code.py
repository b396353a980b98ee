"""The reward function as TRL calls it."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from rewards.code import CodeReward
from rewards.errors import GraderError
from rewards.grader.pool import GraderPool
from rewards.problem import Problem, ProblemError, Test
from rewards.verdict import Status

PROBLEM = Problem("two", "", (Test("1\n", "2\n"), Test("5\n", "10\n")))
RIGHT = '```cpp\n#include <cstdio>\nint main() { int n; scanf("%d", &n); printf("%d", 2 * n); }\n```'
COMPLETIONS = [RIGHT, RIGHT.replace("2 * n", "n + 1"), RIGHT.replace("int n", "it n"), "I do not know.", RIGHT]


def test_rewards_of_completions(pool: GraderPool) -> None:
    reward = CodeReward(pool)
    columns = {"problem": [PROBLEM] * 5, "difficulty": ["easy"] * 5}
    rewards = reward(prompts=["?"] * 5, completions=COMPLETIONS, completion_ids=[[1]] * 5, **columns)
    assert rewards == [1.0, 0.75, 0.0, 0.0, 1.0]
    assert [verdict.status for verdict in reward.verdicts][3] is Status.NO_CODE
    assert reward.rules == ["fence", "fence", "fence", "none", "fence"]


def test_chat_form_and_every_column_form(pool: GraderPool) -> None:
    chat = [[{"role": "assistant", "content": text}] for text in COMPLETIONS[:2]]
    record = PROBLEM.to_record()
    reward = CodeReward(pool, "binary")
    forms: list[dict[str, list[Any]]] = [
        {"problem": [record] * 2},
        {"problem": [json.dumps(record)] * 2},
        {"tests": [record["tests"]] * 2},
        {name: [value, value] for name, value in record.items()},
    ]
    for columns in forms:
        assert reward(prompts=[[]] * 2, completions=chat, **columns) == [1.0, 0.0]


def test_no_verdict_is_none(pool: GraderPool) -> None:
    broken = {**PROBLEM.to_record(), "checker": {"type": "program", "source": "int main() { return 3; }"}}
    assert CodeReward(pool)(prompts=["?"], completions=[RIGHT], problem=[broken]) == [None]


def test_signature_is_trls(pool: GraderPool) -> None:
    reward = CodeReward(pool)
    assert reward.__name__ == "code_reward"
    assert list(inspect.signature(reward).parameters) == ["prompts", "completions", "completion_ids", "columns"]


def test_bad_use(pool: GraderPool) -> None:
    with pytest.raises(GraderError):
        CodeReward(pool, "tierd")
    with pytest.raises(ProblemError, match="column"):
        CodeReward(pool)(prompts=["?"], completions=["x"])


def test_tests_that_are_code(pool: GraderPool) -> None:
    test = Test("#include <cassert>\nint main() { assert(twice(2) == 4); }\n", "")
    problem = Problem("twice", "", (test,), preamble="int twice(int x) {\n", tests_are_code=True)
    completions = ["```cpp\nint twice(int x) { return 2 * x; }\n```", "```cpp\nint twice(int x) { return x; }\n```"]
    rewards = CodeReward(pool)(prompts=["?"] * 2, completions=completions, problem=[problem] * 2)
    assert rewards == [1.0, 0.5]


def test_a_problem_that_is_no_json(pool: GraderPool) -> None:
    with pytest.raises(ProblemError, match="not JSON"):
        CodeReward(pool)(prompts=["?"], completions=["x"], problem=["{"])
