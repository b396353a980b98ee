"""C++ functions to complete, graded by a `main` behind them: what HumanEval-X and MBXP have in common."""

from __future__ import annotations

from data.sources.base import Loaded, Record, Skip, optional, text
from rewards.grader.needs import libraries_of
from rewards.grader.prologue import behind
from rewards.problem import Problem, Test


def function_problem(record: Record, *, prefix: str, source: str, includes: str, license: str) -> Loaded:
    """A problem from `task_id`, `prompt` (up to the function's brace), `test` and `canonical_solution` (the body).

    prefix: of the ids of C++ tasks; others are skipped. includes: what the benchmark's own harness puts before every
    program, as lines.
    """
    identifier = text(record, "task_id")
    if not identifier.startswith(prefix):
        raise Skip(f"{identifier.partition('/')[0]} tasks are not in C++ or not from {source}")
    prompt, test = text(record, "prompt"), text(record, "test")
    body = optional(record, "canonical_solution")
    problem = Problem(
        id=f"{source}/{identifier}",
        statement=f"Complete this function. Write the whole function, and no `main`.\n\n```cpp\n{prompt.rstrip()}\n```",
        tests=(Test(test, ""),),
        source=source,
        preamble=behind(includes, prompt),
        solution=prompt + body if body else "",
        tests_are_code=True,
        libraries=libraries_of(prompt + test),
        license=license,
    )
    return Loaded(problem, (("cpp", prompt + body),) if body else ())
