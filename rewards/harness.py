"""Problems whose tests are code: each test's `input` is source text that is put behind the program, which then runs
alone.

HumanEval-X and the Q problems are of this kind (`Problem.tests_are_code`). Every test becomes a program of its own
for the grader pool; their verdicts are joined to one."""

from __future__ import annotations

import re
import threading
from concurrent.futures import Future
from dataclasses import replace

from rewards.pool import GraderPool
from rewards.problem import Problem, Test
from rewards.verdict import Status, TestVerdict, Verdict

_SIGNATURE = re.compile(r"(\w+)\s*\([^{};]*\)\s*\{\s*\Z")
_MAIN = re.compile(r"\bint\s+main\s*\([^)]{0,200}\)\s*\{")  # bounds keep degenerate texts from costing minutes
_Q_EXIT = re.compile(r"(?:^|(?<=[;\n]))[ \t]*exit[ \t]+[0-9]+[ \t]*;?\s*\Z")
_PROLOGUE = re.compile(r"^[ \t]*(?:#[ \t]*include\b|using\b).*$", re.MULTILINE)


def grade(pool: GraderPool, source: str | None, problem: Problem) -> Future[Verdict]:
    """As `pool.submit`, for problems of either kind. The future never raises."""
    if not problem.tests_are_code or source is None or not source.strip():
        return pool.submit(source, problem)
    program = whole_program(source, problem)
    future: Future[Verdict] = Future()
    if not problem.tests:
        future.set_result(Verdict(Status.WRONG_ANSWER, diagnostics="the problem has no tests"))
        return future
    parts = [
        pool.submit(
            f"{program}\n\n{test.input}\n", replace(problem, tests=(Test("", test.output),), tests_are_code=False)
        )
        for test in problem.tests
    ]
    left, lock = [len(parts)], threading.Lock()

    def one_done(_: Future[Verdict]) -> None:
        with lock:
            left[0] -= 1
            last = left[0] == 0
        if last:
            future.set_result(join([part.result() for part in parts]))

    for part in parts:
        part.add_done_callback(one_done)
    return future


def join(verdicts: list[Verdict]) -> Verdict:
    """One verdict of programs that share their first part, a test each; a test without a verdict spoils the whole."""
    lost = next((verdict for verdict in verdicts if verdict.status is Status.NO_VERDICT), None)
    if lost is not None:
        return replace(lost, total=len(verdicts))
    failed = next((verdict for verdict in verdicts if not verdict.accepted), None)
    tests = [v.tests[0] if v.tests else TestVerdict(v.status, detail=v.diagnostics[:200]) for v in verdicts]
    return Verdict(
        status=failed.status if failed else Status.ACCEPTED,
        passed=sum(verdict.accepted for verdict in verdicts),
        total=len(verdicts),
        compiled=any(verdict.compiled for verdict in verdicts),
        tests=tuple(tests),
        diagnostics=failed.diagnostics if failed else "",
        cpu_s=sum(verdict.cpu_s for verdict in verdicts),
        compile_s=sum(verdict.compile_s for verdict in verdicts),
        cached=all(verdict.cached for verdict in verdicts),
    )


def whole_program(source: str, problem: Problem) -> str:
    """The completion's code made ready for a test to be put behind it.

    A model may continue `problem.preamble` (a signature up to its brace) or write the whole function again, with or
    without the includes, with or without a `main` of its own."""
    if problem.language == "q":
        return _Q_EXIT.sub("", source)
    if problem.language not in ("c", "cpp"):
        return source
    source = without_main(source)
    signature = _SIGNATURE.search(problem.preamble)
    if signature is None:
        return source
    if re.search(rf"\b{signature[1]}\s*\([^{{}};]{{0,1000}}\)\s*\{{", source):
        return "\n".join([*_PROLOGUE.findall(problem.preamble), source])
    return problem.preamble + source


def without_main(source: str) -> str:
    """C or C++ source without its `int main(...) {...}`; braces in strings and comments are not understood."""
    found = _MAIN.search(source)
    if found is None:
        return source
    depth = 0
    for index in range(found.end() - 1, len(source)):
        depth += {"{": 1, "}": -1}.get(source[index], 0)
        if depth == 0:
            return source[: found.start()] + source[index + 1 :]
    return source[: found.start()]
