"""HumanEval-X in C++ (Apache-2.0): a signature to complete and a `main` with assertions, which is run behind the
program."""

from __future__ import annotations

from data.sources.base import Loaded, Record, Skip, Source, optional, text
from rewards.problem import Problem, Test


def convert(record: Record) -> Loaded:
    identifier = text(record, "task_id")
    if not identifier.startswith(("CPP/", "MBCPP/")):
        raise Skip(f"{identifier} is not a C++ task")
    prompt = text(record, "prompt")
    body = optional(record, "canonical_solution")
    problem = Problem(
        id=f"humaneval-x/{identifier}",
        statement=f"Complete this function. Write the whole function, and no `main`.\n\n```cpp\n{prompt.rstrip()}\n```",
        tests=(Test(text(record, "test"), ""),),
        source="humaneval-x",
        preamble=prompt,
        solution=prompt + body if body else "",
        tests_are_code=True,
        license="Apache-2.0",
    )
    return Loaded(problem, (("cpp", prompt + body),) if body else ())


SOURCE = Source("humaneval_x", convert, hub="THUDM/humaneval-x", config="cpp", split="test")
