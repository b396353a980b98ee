"""Problems whose tests are code: each test's `input` is source text that is put behind the program, which then runs
alone.

HumanEval-X and the Q problems are of this kind (`Problem.tests_are_code`). Every test becomes a program of its own
for the grader pool; their verdicts are joined to one."""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from concurrent.futures import Future
from dataclasses import replace

from rewards.extraction import blanked, depths, functions
from rewards.grader.pool import GraderPool
from rewards.grader.prologue import behind, read_prologue
from rewards.problem import Checker, Problem, Test
from rewards.verdict import Status, TestVerdict, Verdict

_C_FAMILY = ("c", "cpp")
# Bounds keep degenerate texts from costing minutes.
_MAIN = re.compile(
    r"\b(?:int|signed|signed\s+int|int32_t|auto|void)\s+main\s*\([^)]{0,200}\)\s*(?:->\s*\w+\s*)?\{"
)
_Q_EXIT = re.compile(r"(?:^|(?<=[;\n]))[ \t]*exit[ \t]+[0-9]+[ \t]*;?\s*\Z")
_SECRET = secrets.token_hex()
# What a program might define to keep a test from failing.
_NOT_DEFINED = "".join(f"#undef {name}\n" for name in ("main", "struct", "if", "throw", "return", "__assert_fail"))
_DECLARATION_END = re.compile(r"[;}]|^[ \t]*#.*$", re.MULTILINE)


def grade(pool: GraderPool, source: str | None, problem: Problem) -> Future[Verdict]:
    """As `pool.submit`, for problems of either kind. The future never raises; it is cancelled with the pool's."""
    if not problem.tests_are_code or source is None or not source.strip():
        return pool.submit(source, problem)
    program = whole_program(source, problem)
    future: Future[Verdict] = Future()
    if not problem.tests:
        future.set_result(Verdict(Status.WRONG_ANSWER, diagnostics="the problem has no tests"))
        return future
    parts = [pool.submit(*_one_test(program, test, problem)) for test in problem.tests]
    left, lock = [len(parts)], threading.Lock()

    def one_done(_: Future[Verdict]) -> None:
        with lock:
            left[0] -= 1
            last = left[0] == 0
        if not last:
            return
        if any(part.cancelled() for part in parts):
            future.cancel()
        else:
            verdicts = [part.result() for part in parts]
            future.set_result(join([_said(*pair) for pair in zip(verdicts, problem.tests, strict=True)]))

    for part in parts:
        part.add_done_callback(one_done)
    return future


def wanted_function(problem: Problem) -> str:
    """What a C or C++ program must define: `main`, or the function that its preamble opens, if any."""
    return "main" if not problem.tests_are_code else (functions(problem.preamble) or [""])[-1]


def _one_test(program: str, test: Test, problem: Problem) -> tuple[str, Problem]:
    """A program with a test behind it, and what is to be graded.

    Where no output is expected of C or C++, the exit code counts, as in the benchmarks: a function may print. In C++
    the test's `main` has to come to its end, too, where it prints a word that nobody can foresee.
    """
    code, output, checker = test.input, test.output, problem.checker
    if problem.language in _C_FAMILY and not output:
        checker = Checker("contains")
        if problem.language == "cpp" and (main := _MAIN.search(blanked(code))):
            output = "end_" + hashlib.sha256(f"{_SECRET}{program}{code}".encode("utf-8", "replace")).hexdigest()[:16]
            guard = f' struct {output} {{ ~{output}() {{ __builtin_puts("{output}"); }} }} its_{output};'
            code = f"{_NOT_DEFINED}{code[: main.end()]}{guard}{code[main.end() :]}"
    alone = replace(problem, tests=(Test("", output),), checker=checker, tests_are_code=False)
    return f"{program}\n\n{code}\n", alone


def _said(verdict: Verdict, test: Test) -> Verdict:
    """The verdict on a test, in its terms: where no output is expected, what is missed is the word at its end."""
    if verdict.status is not Status.WRONG_ANSWER or test.output:
        return verdict
    message = "the test did not come to its end"
    return replace(verdict, tests=(replace(verdict.tests[0], detail=message),), diagnostics=message)


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
        header=min((verdict.header for verdict in verdicts if verdict.header), default=""),  # rejected before used
        cached=all(verdict.cached for verdict in verdicts),
    )


def whole_program(source: str, problem: Problem) -> str:
    """The completion's code made ready for a test to be put behind it.

    A model may continue `problem.preamble` (a signature up to its brace) or write the whole function again, with or
    without the includes and the functions before it, with or without a `main` of its own."""
    if problem.language == "q":
        return _Q_EXIT.sub("", source)
    if problem.language not in _C_FAMILY:
        return source
    source = without_main(source)
    code = blanked(problem.preamble)
    opened, written = functions(code), functions(source)
    if not code.rstrip().endswith("{") or not opened or (opened[-1] not in written and _continues(source)):
        return problem.preamble + source
    before = [found.end() for found in _DECLARATION_END.finditer(code[: code.rindex(opened[-1])])]
    head = problem.preamble[: before[-1] if before else 0] + "\n"
    if set(opened[:-1]) & set(written):  # its own helpers, too: only the includes are missing
        head = "".join(f"{text}\n" for text in read_prologue(head).texts)
    return behind(head, source)


def _continues(source: str) -> bool:
    """Whether source that does not define its function in the common form goes on in the open brace of one: it closes
    more braces than it opens. Where it is cut off, braces do not tell."""
    depth, lowest = depths(source)
    return lowest < 0 or depth > 0


def without_main(source: str) -> str:
    """C or C++ source without its `int main(...) {...}`."""
    code = blanked(source)
    found = _MAIN.search(code)
    if found is None:
        return source
    depth = 0
    for brace in re.finditer(r"[{}]", code[found.end() - 1 :]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return source[: found.start()] + source[found.end() - 1 + brace.end() :]
    return source[: found.start()]
