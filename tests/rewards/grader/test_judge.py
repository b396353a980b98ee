"""Verdicts of single programs: statuses, limits, checkers, languages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rewards.errors import GraderError
from rewards.grader import toolchains
from rewards.grader.judge import Judge
from rewards.grader.pool import GraderPool
from rewards.grader.toolchains import find_toolchain
from rewards.problem import LANGUAGES, Checker, Problem, Test
from rewards.verdict import Status, Verdict

SUM = Problem("sum", "", tuple(Test(f"{i} {i * i}\n", f"{i + i * i}\n") for i in range(4)), time_limit=0.3)
RIGHT = '#include <cstdio>\nint main() { long a, b; scanf("%ld%ld", &a, &b); printf("%ld\\n", a + b); }\n'


def grade(pool: GraderPool, source: str | None, problem: Problem = SUM) -> Verdict:
    return pool.submit(source, problem).result(timeout=120)


def test_accepted(pool: GraderPool) -> None:
    verdict = grade(pool, RIGHT)
    assert verdict.accepted and verdict.compiled
    assert (verdict.passed, verdict.total, len(verdict.tests)) == (4, 4, 4)
    assert all(test.status is Status.ACCEPTED and test.memory_bytes > 100_000 for test in verdict.tests)
    assert 0 < verdict.cpu_s < 1 and 0 < verdict.compile_s < 5


def test_no_code_and_compile_error(pool: GraderPool) -> None:
    assert grade(pool, None).status is Status.NO_CODE
    assert grade(pool, " \n").status is Status.NO_CODE
    verdict = grade(pool, "int main() { return missing; }")
    assert (verdict.status, verdict.compiled, verdict.total, verdict.tests) == (Status.COMPILE_ERROR, False, 4, ())
    assert "missing" in verdict.diagnostics and "/" not in verdict.diagnostics.split(":")[0]
    assert grade(pool, "int f();").status is Status.COMPILE_ERROR  # the linker misses main


def test_partial_credit_names_the_first_failure(pool: GraderPool) -> None:
    verdict = grade(pool, RIGHT.replace("a + b", "a * 2"))
    assert (verdict.status, verdict.passed) == (Status.WRONG_ANSWER, 2)
    assert [test.status for test in verdict.tests] == [Status.ACCEPTED] * 2 + [Status.WRONG_ANSWER] * 2
    assert "test 3" in verdict.diagnostics


def test_stops_after_the_second_timeout(pool: GraderPool) -> None:
    verdict = grade(pool, "int main() { for (volatile int i = 0;; i = i + 1); }")
    assert [test.status for test in verdict.tests] == [Status.TIME_LIMIT] * 4
    assert [test.cpu_s > 0.3 for test in verdict.tests] == [True, True, False, False]
    assert verdict.cpu_s < 2 * (0.3 * 1.5 + 0.1) + 0.2


def test_no_tests_is_not_accepted(pool: GraderPool) -> None:
    verdict = grade(pool, RIGHT, Problem("empty", ""))
    assert (verdict.status, verdict.compiled, verdict.total) == (Status.WRONG_ANSWER, True, 0)


def test_deep_recursion_and_large_arrays_within_the_limit(pool: GraderPool) -> None:
    source = (
        "#include <cstdio>\n#include <vector>\n"
        "int depth(int n) { volatile int x = n; return n ? depth(n - 1) + (x == n) : 0; }\n"
        'int main() { std::vector<int> v(20000000, 1); long a, b; scanf("%ld%ld", &a, &b);\n'
        'if (depth(1000000) == 1000000) printf("%ld", a + b + v[77] - 1); }\n'
    )
    assert grade(pool, source).accepted


def test_threads_work(pool: GraderPool) -> None:
    source = RIGHT.replace("printf(", "std::thread([&] { a += b; }).join(); printf(").replace("a + b", "a")
    assert grade(pool, "#include <thread>\n" + source).accepted


def test_large_output_and_input(pool: GraderPool) -> None:
    text = "\n".join(str(i) for i in range(200_000)) + "\n"  # more than any pipe holds
    source = "#include <iostream>\nint main() { for (std::string s; std::cin >> s;) std::cout << s << '\\n'; }\n"
    problem = Problem("copy", "", (Test(text, text),))
    assert grade(pool, source, problem).accepted


@pytest.mark.parametrize(
    ("checker", "output", "status"),
    [
        (Checker("exact"), "1 2\n3", Status.ACCEPTED),
        (Checker("exact"), "1  2\n3", Status.WRONG_ANSWER),
        (Checker("unordered"), "3\n1 2", Status.ACCEPTED),
        (Checker("float", 1e-3), "1.0 2.000\n3", Status.ACCEPTED),
        (Checker("float", 1e-3), "1.0 2.0001\n3", Status.ACCEPTED),
        (Checker("float", 1e-3), "1.0 2.01\n3", Status.WRONG_ANSWER),
        (Checker("float", 1e-3), "nan 2\n3", Status.WRONG_ANSWER),
    ],
)
def test_comparison(pool: GraderPool, checker: Checker, output: str, status: Status) -> None:
    source = f'#include <cstdio>\nint main() {{ fputs(R"x({output})x", stdout); }}\n'
    assert grade(pool, source, Problem("compare", "", (Test("", "1 2\n3\n"),), checker=checker)).status is status


# Accepts any divisor of the input; reads all three files, as testlib checkers do.
DIVISOR = """
#include <cstdio>
#include <fstream>
int main(int count, char **arguments) {
    long n, d, answer;
    if (count != 4 || !(std::ifstream(arguments[1]) >> n) || !(std::ifstream(arguments[3]) >> answer)) return 3;
    if (!(std::ifstream(arguments[2]) >> d)) return fputs("no number", stderr), 2;
    return d > 1 && n % d == 0 ? 0 : 1;
}
"""


def test_checker_program(pool: GraderPool) -> None:
    tests = tuple(Test(f"{n}\n", f"{d}\n") for n, d in ((12, 2), (35, 5), (49, 7)))
    problem = Problem("divisor", "", tests, checker=Checker("program", source=DIVISOR))
    largest = (
        '#include <cstdio>\nint main() { int n; scanf("%d", &n);\n'
        'for (int d = n - 1; d; d--) if (n % d == 0) return printf("%d", d), 0; }\n'
    )
    assert grade(pool, largest, problem).accepted
    constant = grade(pool, '#include <cstdio>\nint main() { puts("6"); }', problem)
    assert (constant.status, constant.passed) == (Status.WRONG_ANSWER, 1)
    silent = grade(pool, "int main() {}", problem)
    assert silent.status is Status.WRONG_ANSWER and "no number" in silent.diagnostics
    crash = grade(pool, "int main() { return 1; }", problem)
    assert crash.status is Status.RUNTIME_ERROR


def test_broken_checker_gives_no_verdict(pool: GraderPool) -> None:
    problem = Problem(
        "broken", "", (Test("1\n", "1\n"),), checker=Checker("program", source="int main() { return 3; }")
    )
    assert grade(pool, "int main() {}", problem).status is Status.NO_VERDICT
    problem = Problem("broken", "", (Test("1\n", "1\n"),), checker=Checker("program", source="int main("))
    verdict = grade(pool, "int main() {}", problem)
    assert verdict.status is Status.NO_VERDICT and "checker does not compile" in verdict.diagnostics


PROGRAMS = {
    "c": (
        '#include <stdio.h>\nint main() { long a, b; scanf("%ld%ld", &a, &b); printf("%ld", a + b); }',
        "int main( {",
    ),
    "python": ("import math\na, b = map(int, input().split())\nprint(math.gcd(0, a + b))\n", "print("),
}


@pytest.mark.parametrize("language", PROGRAMS)
def test_other_languages(pool: GraderPool, language: str) -> None:
    problem = Problem("sum", "", SUM.tests, language=language)
    right, broken = PROGRAMS[language]
    verdict = grade(pool, right, problem)
    assert verdict.accepted, verdict.diagnostics
    assert grade(pool, broken, problem).status is Status.COMPILE_ERROR


def test_python_is_confined_too(pool: GraderPool) -> None:
    problem = Problem("sum", "", SUM.tests[:1], language="python")
    attack = "import os\nopen('/etc/passwd') if os.path.exists('/etc/passwd') else os.fork()\nprint(0)\n"
    assert grade(pool, attack, problem).status is Status.RUNTIME_ERROR
    assert grade(pool, "x = [0] * 10**9\n", problem).status is Status.MEMORY_LIMIT


@pytest.mark.skipif(shutil.which("q") is not None, reason="q is installed here")
def test_q_says_what_is_missing(pool: GraderPool) -> None:
    with pytest.raises(GraderError, match="kdb"):
        pool.submit("show 1", Problem("q", "", SUM.tests, language="q"))


@pytest.mark.skipif(shutil.which("clang++") is None, reason="clang++ is not installed here")
def test_clang_and_another_standard() -> None:
    with GraderPool(1, compiler="clang++", standard="c++20", quiet=True) as clang:
        concept = "#include <cstdio>\ntemplate <class T> concept Any = true;\n"
        assert grade(clang, concept + RIGHT).accepted
        assert clang.describe()["header"] == "none"


@pytest.mark.parametrize(
    ("arguments", "word"), [(("cobol",), "cobol"), (("cpp", "icc"), "icc"), (("cpp", "g++", "c++98"), "c\\+\\+98")]
)
def test_unknown_toolchains(arguments: tuple[str, ...], word: str) -> None:
    with pytest.raises(GraderError, match=word):
        find_toolchain(*arguments)


def test_a_linker_is_taken_where_the_sandbox_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = toolchains.linker_flags()
    (tmp_path / "mold").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolchains.linker_flags() == before


def test_a_compiler_that_takes_too_long_is_named(pool: GraderPool) -> None:
    loops = "long s = seed; for (int i = 0; i < 200; i++) for (int j = 0; j < 20000; j++) s += i ^ j; return s;"
    bomb = f"constexpr long f(long seed) {{ {loops} }}\n"
    bomb += "".join(f"constexpr long v{n} = f({n});\n" for n in range(20)) + "int main() { return v0 == v1; }\n"
    verdict = grade(pool, bomb)
    assert verdict.status is Status.COMPILE_ERROR and "of CPU time" in verdict.diagnostics, verdict.diagnostics


def test_inputs_that_cannot_be_written_leave_nothing(pool: GraderPool, tmp_path: Path) -> None:
    odd = Problem("odd", "", (Test("1\n", ""), Test("\ud800", "")))
    with pytest.raises(UnicodeError):
        Judge(pool.config, tmp_path).grade("int main() {}", odd)
    assert not list(tmp_path.iterdir())


def test_every_language_of_the_schema_has_a_toolchain() -> None:
    assert tuple(toolchains._entries) == LANGUAGES
