"""Problems whose tests are code: HumanEval-X in C++, and Q with a stand-in for the licensed interpreter."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rewards.errors import GraderError
from rewards.grader.harness import functions, grade, join, whole_program, without_main
from rewards.grader.pool import GraderPool
from rewards.problem import Problem, Test
from rewards.q import QReward, extract_program, format_reward
from rewards.verdict import Status, Verdict

PROMPT = "/* Twice x. */\n#include<vector>\nusing namespace std;\nint twice(int x){\n"
TESTS = "#undef NDEBUG\n#include<assert.h>\nint main(){ assert(twice(2)==4); assert(twice(0)==0); }\n"
PROBLEM = Problem("CPP/0", "Complete it.", (Test(TESTS, ""),), preamble=PROMPT, tests_are_code=True)


@pytest.mark.parametrize(
    "source, status",
    [
        ("    return 2 * x;\n}\n", Status.ACCEPTED),  # the body alone
        ("int twice(int x) {\n    vector<int> v(2, x);\n    return v[0] + v[1];\n}\n", Status.ACCEPTED),  # no includes
        (PROMPT + "    return 2 * x;\n}\n", Status.ACCEPTED),  # all of it
        (PROMPT + "    return 2 * x;\n}\nint main() { if (1) { return twice(1); } }\n", Status.ACCEPTED),  # and a main
        ("    return x * x + 1;\n}\n", Status.RUNTIME_ERROR),
        ("    return 2 * y;\n}\n", Status.COMPILE_ERROR),
    ],
)
def test_completions_of_a_function(pool: GraderPool, source: str, status: Status) -> None:
    verdict = grade(pool, source, PROBLEM).result()
    assert (verdict.status, verdict.total) == (status, 1)


WHOLE = [
    "auto twice(int x) -> int { return 2 * x; }",
    "int twice(int x) noexcept { return 2 * x; }",
    "int twice(int x, vector<int> memo = {}) { return 2 * x; }",
    "int twice(int x) try { return 2 * x; } catch (...) { return 0; }",
    "auto twice = [](int x) { return 2 * x; };",
    "struct Twice { int operator()(int x) const { return 2 * x; } } twice;",
    "namespace sol { int twice(int x) { return 2 * x; } } using namespace sol;",
    "namespace { int twice(int x) { return 2 * x; } }",
    'extern "C" { int twice(int x) { return 2 * x; } }',
    "int (twice)(int x) { return 2 * x; }",
    "#define NAME twice\nint NAME(int x) { return 2 * x; }",
    "int twice(int x) <% return 2 * x; %>",
    "#ifdef A\nint twice(long x) {\n#else\nint twice(int x) {\n#endif\nreturn 2 * x; }",
    "const int BIG = 1'000;\nbool open(char c) { return c == '{'; }\nint twice(int x) { return 2 * x; }",
]
BODIES = [
    "    if (x) { return 2 * x; }\n    return 0;\n}\n",
    "    return 2 * x;\n}\nint main() { return twice(1); }\n",
    "    return 2 * x; // }\n    string s = \"}\";\n}\nint helper() { return 1; }\n",
    "    return 2 * x;\n%>\n",
]


def test_functions_of_any_form_and_bodies() -> None:
    for source in WHOLE:
        assert whole_program(source, PROBLEM) == f"/* Twice x. */\n#include<vector>\nusing namespace std;\n{source}"
    for source in BODIES:
        assert whole_program(source, PROBLEM) == PROMPT + without_main(source)
    cut_off = "int twice(int x) { if (x) { return"
    assert PROMPT not in whole_program(cut_off, PROBLEM)
    assert whole_program("if (x) { return", PROBLEM).startswith(PROMPT)


def test_functions_of_any_form_are_graded(pool: GraderPool) -> None:
    futures = {source: grade(pool, source, PROBLEM) for source in WHOLE[:11]}
    for source, future in futures.items():
        assert future.result().accepted, (source, future.result().diagnostics)


def test_a_function_may_print(pool: GraderPool) -> None:
    """The benchmarks look at the exit code alone."""
    source = '#include <cstdio>\nint twice(int x) { printf("twice %d\\n", x); return 2 * x; }\n'
    assert grade(pool, source, PROBLEM).result().accepted
    assert grade(pool, source.replace("2 * x", "3 * x"), PROBLEM).result().status is Status.RUNTIME_ERROR
    endless = source.replace("return", "for (;;) puts(\"twice twice twice twice twice twice twice\"); return")
    assert grade(pool, endless, PROBLEM).result().status is Status.OUTPUT_LIMIT
    shown = replace(PROBLEM, tests=(Test('#include <cstdio>\nint main() { printf("%d", twice(1)); }\n', "2"),))
    assert grade(pool, "int twice(int x) { return 2 * x; }", shown).result().accepted
    wrong = grade(pool, "int twice(int x) { return 3 * x; }", shown).result()
    assert wrong.status is Status.WRONG_ANSWER and wrong.diagnostics == "wrong answer on test 1"


EARLY = [
    "int twice(int x) { exit(0); }",
    "struct Early { Early() { _Exit(0); } } early;\nint twice(int x) { return 7; }",
    "int twice(int x) { set_terminate([] { _Exit(0); }); signal(SIGABRT, [](int) { _Exit(0); }); return 7; }",
    "int twice(int x) { return 7; }\n#define throw (void)",
    "int twice(int x) { exit(0); }\n#define struct static struct",
    "int twice(int x) { return 7; }\n#define if(x) while (0)",
    "int twice(int x) { return 7; }\n#define __assert_fail(...) (void)0",
    "int twice(int x) { return 7; }\n#define main(...) main() { return 0; } int other(__VA_ARGS__)",
]


def test_a_test_comes_to_its_end(pool: GraderPool) -> None:
    includes = "#include <csignal>\n#include <cstdlib>\n#include <exception>\n#include <stdexcept>\n"
    throws = "int main(int argc, char** argv) { if (twice(2) != 4) { throw runtime_error(\"no\"); } return 0; }\n"
    problem = replace(PROBLEM, preamble=includes + PROMPT, tests=(Test(throws, ""),))
    right = grade(pool, "int twice(int x) { return 2 * x; }", problem)
    futures = [grade(pool, source, PROBLEM if "assert" in source else problem) for source in EARLY]
    assert right.result().accepted
    for source, future in zip(EARLY, futures, strict=True):
        assert future.result().compiled and future.result().passed == 0, source
    left = futures[0].result()
    assert left.status is Status.WRONG_ANSWER
    assert left.diagnostics == left.tests[0].detail == "the test did not come to its end"


def test_the_prologue_is_not_repeated_and_helpers_are_kept() -> None:
    helper = "int helper(int x){ return x; }\n"
    preamble = (
        "/* Twice (of x). */\n#include<vector>\n#include <string>\nusing namespace std;\n" + helper + "int f(int x){\n"
    )
    problem = replace(PROBLEM, preamble=preamble)
    full = whole_program(
        "#include <vector>\n#include <map>\nusing namespace std;\nint f(int x) { return helper(x); }", problem
    )
    assert full.count("vector") == full.count("using namespace std;") == full.count("int helper(") == 1
    assert full.index("<string>") < full.index("<map>")
    own = whole_program(helper + "int f(int x) { return helper(x); }", problem)
    assert own.count("int helper(") == 1 and "<vector>" in own and "<string>" in own
    assert whole_program("    return helper(x);\n}\n", problem) == preamble + "    return helper(x);\n}\n"
    hidden = whole_program("// #include <vector>\nint f(int x) { return 0; }", problem)
    assert "#include <vector>\n" in hidden  # a comment includes nothing


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("int f(int x) { if (x) { return 1; } return 2; }\nstatic string g() {", ["f", "g"]),
        ("// a function (helper)\nvector<int> f(vector<int> a)\n{\n}", ["f"]),
        ("struct S { int inner() { return 1; } };\nint f(function<int(int)> g) {", ["f"]),
        ('const char *s = "int no() {";\nint f(const string& s) {', ["f"]),
        ("int f(int x);\nint y;", []),
    ],
)
def test_functions_of_a_text(text: str, names: list[str]) -> None:
    assert functions(text) == names


def test_a_signature_behind_a_comment_with_braces_and_calls(pool: GraderPool) -> None:
    comment = '/**\n * > cut(vector<string>{string("a (b)")})\n * string("a ")\n */\n'
    preamble = f"#include <bits/stdc++.h>\nusing namespace std;\n{comment}string cut(vector<string> a) {{\n"
    test = 'int main() { if (cut({"x"}) != "x") throw runtime_error("no"); }\n'
    problem = Problem("cut", "", (Test(test, ""),), preamble=preamble, tests_are_code=True)
    assert grade(pool, "string cut(vector<string> a) { return a[0]; }", problem).result().accepted


def test_nothing_to_grade(pool: GraderPool) -> None:
    assert grade(pool, None, PROBLEM).result().status is Status.NO_CODE
    assert not grade(pool, "int f();", Problem("a", "", tests_are_code=True)).result().accepted


def test_programs_of_a_pool_that_is_given_up_are_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """As where a run ends whose next batch is still being graded."""
    pool = GraderPool(1, quiet=True)
    futures = [grade(pool, f"    return {number} * x;\n}}\n", PROBLEM) for number in range(20)]
    pool.close(cancel=True)
    assert all(future.done() for future in futures) and any(future.cancelled() for future in futures)
    assert not caplog.records  # concurrent.futures logs what a callback raises


def test_a_main_is_cut_out_with_its_braces() -> None:
    assert (
        without_main("int f(){}\nint main(int argc, char** argv) { while (1) { } }\nint g(){}")
        == "int f(){}\n\nint g(){}"
    )
    assert without_main("int domain() { return 1; }") == "int domain() { return 1; }"
    assert without_main("int main() { { ") == ""


@pytest.mark.parametrize(
    "main",
    [
        "int main(void) // test\n{ }",
        "int main() { char c = '}'; puts(\"{\"); /* { */ }",
        "signed main() { }",
        "signed int main() { }",
        "int32_t main() { }",
        "auto main() -> int { if (1) { } }",
        "void main() { }",
        "int main() <% %>",
    ],
)
def test_a_main_in_any_form_is_cut_out(main: str) -> None:
    assert without_main(f"int f() {{ return 1; }}\n{main}\nint g();") == "int f() { return 1; }\n\nint g();"


@pytest.mark.parametrize(
    "source",
    ["// No int main() { ...\nint f();", 'auto doc = "int main() {";', "/* int main() { } */", "int f(int main);"],
)
def test_a_main_that_is_only_mentioned_stays(source: str) -> None:
    assert without_main(source) == source


def test_joined_verdicts() -> None:
    right = Verdict(Status.ACCEPTED, passed=1, total=1, compiled=True)
    wrong = Verdict(Status.WRONG_ANSWER, total=1, compiled=True)
    both = join([right, wrong])
    assert (both.status, both.passed, both.total, both.compiled) == (Status.WRONG_ANSWER, 1, 2, True)
    assert join([right, right]).accepted
    assert join([right, Verdict(Status.NO_VERDICT, total=1)]).status is Status.NO_VERDICT


@pytest.mark.parametrize("end", ["exit 0;", "\nexit 0", " exit 0 ;\n", "\n  exit 1;  "])
def test_q_programs_do_not_leave_before_the_test(end: str) -> None:
    problem = Problem("q", "", language="q", tests_are_code=True)
    assert whole_program(f"f:{{x+1}};{end}", problem).strip() == "f:{x+1};"
    assert whole_program("exitcode:1", problem) == "exitcode:1"


@pytest.mark.parametrize(
    "completion, program",
    [
        ("```q\nf:{x}\n```", "f:{x}\n"),
        ("<reasoning>r</reasoning><answer>f:{x}</answer>", "f:{x}"),
        ("```q\ndraft\n```\n<answer>\n```q\nf:{x}\n```\n</answer>", "f:{x}\n"),
        ("<answer></answer>", None),
        ("f:{x}", None),
        ("", None),
    ],
)
def test_q_programs_in_completions(completion: str, program: str | None) -> None:
    assert extract_program(completion) == program


def test_q_format() -> None:
    texts = [
        "<reasoning>r</reasoning>\n<answer>f</answer>",
        "<answer>f</answer>",
        "<answer><answer>f</answer></answer>",
        "",
    ]
    assert format_reward([""] * 4, texts) == [1.0, 0.0, 0.0, 0.0]


# Prints what stands behind every `show`, which is all that these tests ask of Q.
STAND_IN = r"""
#include <cstdio>
#include <cstring>
int main(int argc, char** argv) {
  char line[1000];
  FILE* program = fopen(argv[1], "r");
  while (fgets(line, sizeof line, program))
    if (!strncmp(line, "show ", 5)) printf("%s\n", strtok(line + 5, ";\n"));
}
"""


@pytest.fixture
def q_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "q"
    home.mkdir()
    (home / "q.k").touch()
    subprocess.run(["g++", "-x", "c++", "-", "-o", str(home / "q")], input=STAND_IN, text=True, check=True)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    monkeypatch.setenv("QHOME", str(home))


def test_rewards_of_q_programs(q_home: None) -> None:
    tests = (Test("show 2;", "2"), Test("show 3;", "4"))
    problem = Problem("a", "", tests, language="q", tests_are_code=True)
    easy = Problem("b", "", tests[:1], language="q", tests_are_code=True)
    completions = ["```q\nf:{x+1}\nexit 0;\n```", "```q\nf:{x+1}\n```", "no program"]
    with GraderPool(1, quiet=True) as pool:
        reward = QReward(pool)
        assert reward(["", "", ""], completions, problem=[problem, easy, easy]) == [0.5, 3.0, 0.0]
        assert reward.verdicts[0].passed == 1


def test_q_without_an_interpreter(pool: GraderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(GraderError, match="q is missing"):
        grade(pool, "f:{x}", Problem("a", "", (Test("", ""),), language="q", tests_are_code=True))


@pytest.mark.parametrize("text", ["int main(", "twice(", "twice() "])
def test_degenerate_texts_are_read_in_time(text: str) -> None:
    start = time.process_time()
    whole_program(text * (60_000 // len(text)), PROBLEM)
    assert time.process_time() - start < 2.0
