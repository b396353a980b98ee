"""Every loader on records of the published shape: what becomes a problem, its tests and limits, and what does not."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from data.problems import DatasetError, read_problems, write_problems
from data.sources import SOURCES, Loaded, Skip, convert_record, load
from data.sources.base import memory_bytes
from data.sources.livecodebench import private_tests
from rewards.grader.harness import grade
from rewards.grader.pool import GraderPool
from rewards.gsm8k import parse_number
from rewards.problem import MEGABYTE, Test

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def converted(source: str, record: dict[str, Any]) -> Loaded:
    return convert_record(SOURCES[source], record)


def skipped(source: str, record: dict[str, Any]) -> str:
    with pytest.raises(Skip) as reason:
        converted(source, record)
    return str(reason.value)


CODE_CONTESTS: dict[str, Any] = {
    "name": "1234_B. Sums",
    "description": "Add two numbers.\r\n\nInput\n\nTwo integers.",
    "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
    "private_tests": {"input": ["5 5\n", "1 2\n"], "output": ["10\n", "3\n"]},
    "generated_tests": {"input": ["7 1\n", "1 1 1 ..."], "output": ["8\n", "..."]},
    "source": 2,
    "difficulty": 8,
    "solutions": {"language": [3, 2, 1, 4], "solution": ["py3", "c++", "py2", "java"]},
    "incorrect_solutions": {"language": [], "solution": []},
    "cf_contest_id": 1234,
    "cf_index": "B",
    "cf_points": 0.0,
    "cf_rating": 1200,
    "cf_tags": ["math"],
    "is_description_translated": False,
    "untranslated_description": "",
    "time_limit": {"seconds": 2, "nanos": 500000000},
    "memory_limit_bytes": 256000000,
    "input_file": "",
    "output_file": "",
}


def test_code_contests() -> None:
    problem, solutions = (found := converted("code_contests", CODE_CONTESTS)).problem, found.solutions
    assert (problem.source, problem.difficulty) == ("codeforces", "B 1200")
    assert (problem.time_limit, problem.memory_limit) == (2.5, 256_000_000)
    assert problem.tests == (Test("1 2\n", "3\n", True), Test("5 5\n", "10\n"), Test("7 1\n", "8\n"))
    assert solutions == (("cpp", "c++"), ("python", "py3")) and problem.solution == "c++"
    assert "\r" not in problem.statement
    unknown = CODE_CONTESTS | {
        "time_limit": None,
        "memory_limit_bytes": 0,
        "source": 5,
        "difficulty": 1,
        "cf_rating": 0,
    }
    problem = converted("code_contests", unknown).problem
    assert (problem.time_limit, problem.memory_limit) == (2.0, 256 * MEGABYTE)
    for text, limit in (("1G", 1000), ("262144K", 262.144), ("64 M", 64), ("256", 256), ("5 pages", 256)):
        assert memory_bytes(text) == limit * MEGABYTE, text
    assert (problem.source, problem.difficulty) == ("atcoder", "EASY")
    assert converted("code_contests", CODE_CONTESTS | {"difficulty": 28}).problem.difficulty == "V 1200"
    assert "files" in skipped("code_contests", CODE_CONTESTS | {"input_file": "input.txt"})
    assert "image" in skipped("code_contests", CODE_CONTESTS | {"description": "See <image>."})
    assert "1 test inputs but 0 outputs" in skipped(
        "code_contests", CODE_CONTESTS | {"public_tests": {"input": ["1"], "output": []}}
    )
    odd = CODE_CONTESTS | {"public_tests": {"in": []}}
    assert "does not have the documented format" in skipped("code_contests", odd)


@pytest.mark.parametrize(
    "name, tests, expected",
    [
        ("taco", {"inputs": ["1\n", ["2", "3"]], "outputs": ["1\n", ["6"]]}, [("1\n", "1\n"), ("2\n3", "6")]),
        ("primeintellect", [{"type": "stdin_stdout", "fn_name": None, "input": "1", "output": "2"}], [("1", "2")]),
        ("lcbv5", [{"input": "1", "output": "2", "testtype": "stdin"}], [("1", "2")]),
        ("codeforces", [{"input": "1\r\n", "output": "2"}], [("1\n", "2")]),
    ],
)
@pytest.mark.parametrize("encode", [json.dumps, repr])
def test_deepcoder_shapes_of_tests(name: str, tests: Any, expected: list[tuple[str, str]], encode: Any) -> None:
    record = {"problem": "Do it.", "tests": encode(tests), "solutions": ["```python\nprint(1)\n```"], "metadata": {}}
    found = converted("deepcoder", record)
    assert [(t.input, t.output) for t in found.problem.tests] == expected
    assert found.problem.source == name and found.solutions == (("python", "print(1)\n"),)


@pytest.mark.parametrize(
    "change",
    [
        {"tests": json.dumps({"inputs": [[1]], "outputs": [[1]], "fn_name": "f"})},
        {"tests": json.dumps([{"type": "function_call", "fn_name": "f", "input": "1", "output": "2"}])},
        {"tests": json.dumps([{"input": "1", "output": "2", "testtype": "functional"}])},
        {"metadata": {"func_name": "f"}},
        {"metadata": json.dumps({"func_name": "f"})},
        {"starter_code": "class Solution:"},
    ],
)
def test_deepcoder_leaves_python_functions_out(change: dict[str, Any]) -> None:
    record = {"problem": "p", "tests": json.dumps([{"input": "1", "output": "2"}]), "metadata": "{}"}
    assert converted("deepcoder", record)
    assert "Python function" in skipped("deepcoder", record | change)
    assert "JSON" in skipped("deepcoder", record | {"tests": "[{"})
    assert "1 test inputs" in skipped("deepcoder", record | {"tests": '{"inputs": ["1"], "outputs": []}'})


def lcb(private: str) -> dict[str, Any]:
    return {
        "question_title": "A",
        "question_content": "Say hi.\r\n",
        "platform": "atcoder",
        "question_id": "abc300_a",
        "contest_id": "abc300",
        "contest_date": "2023-05-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}]),
        "private_test_cases": private,
        "metadata": "{}",
    }


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("echo owned > /tmp/owned-by-pickle",)


def test_livecodebench() -> None:
    tests = [{"input": "3", "output": "4", "testtype": "stdin"}]
    for private in (json.dumps(tests), packed(json.dumps(tests))):
        problem = converted("livecodebench", lcb(private)).problem
        assert problem.tests == (Test("1", "2", True), Test("3", "4"))
        assert (problem.source, problem.difficulty, problem.statement) == ("atcoder", "easy", "# A\n\nSay hi.")
    functional = json.dumps([{"input": "3", "output": "4", "testtype": "functional"}])
    assert "Python function" in skipped("livecodebench", lcb(functional))
    assert "Python function" in skipped("livecodebench", lcb(json.dumps(tests)) | {"starter_code": "class Solution:"})


@pytest.mark.parametrize("value", [Evil(), [Evil()], os.path, int, Path("x"), {"a": Evil()}, Test("", "")])
def test_a_pickle_may_not_name_anything(value: Any) -> None:
    with pytest.raises(Skip, match="cannot be unpacked"):
        try:
            data = packed(value)
        except TypeError:  # a module cannot be pickled: refer to one by hand
            data = base64.b64encode(zlib.compress(b"cos\nsystem\n(S'true'\ntR.")).decode()
        private_tests(data)
    assert not Path("/tmp/owned-by-pickle").exists()


@pytest.mark.parametrize("text", ["", "%%%", "aGVsbG8=", base64.b64encode(zlib.compress(b"\x80\x04\x95")).decode()])
def test_damaged_private_tests_are_skipped(text: str) -> None:
    with pytest.raises(Skip):
        private_tests(text)


OPEN_R1: dict[str, Any] = {
    "id": "1234/A",
    "index": "A",
    "title": "Sum",
    "description": "Add.",
    "input_format": "Two numbers.",
    "output_format": "One.",
    "note": None,
    "interaction_format": None,
    "time_limit": 1.5,
    "memory_limit": 512.0,
    "rating": 800,
    "tags": ["math"],
    "examples": [{"input": "1 2", "output": "3"}],
    "official_tests": [{"input": "2 2", "output": "4"}],
    "official_tests_complete": True,
    "input_mode": "stdio",
    "generated_checker": None,
    "executable": True,
}


def test_open_r1_codeforces() -> None:
    problem = converted("open_r1_codeforces", OPEN_R1).problem
    assert (problem.time_limit, problem.memory_limit, problem.difficulty) == (1.5, 512_000_000, "A 800")
    assert problem.tests == (Test("1 2", "3", True), Test("2 2", "4"))
    assert problem.statement == "# Sum\n\nAdd.\n\n## Input\nTwo numbers.\n\n## Output\nOne."
    for change in ({"input_mode": "file"}, {"interaction_format": "ask"}, {"generated_checker": "print(1)"}):
        skipped("open_r1_codeforces", OPEN_R1 | change)


def test_apps_and_taco(tmp_path: Path) -> None:
    tests = json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["1\n", "4\n"]})
    record = {
        "problem_id": 7,
        "question": "Square.",
        "input_output": tests,
        "difficulty": "interview",
        "solutions": '["print(1)"]',
    }
    found = converted("apps", record | {"starter_code": "", "url": "http://x"})
    assert (
        found.problem.id == "apps/7" and len(found.problem.tests) == 2 and found.solutions == (("python", "print(1)"),)
    )
    taco = {"question": "Square.", "input_output": tests, "difficulty": "UNKNOWN_DIFFICULTY", "source": "codechef"}
    problem = converted("taco", taco | {"time_limit": "2.0 seconds", "memory_limit": "256 megabytes"}).problem
    assert (problem.time_limit, problem.memory_limit, problem.source, problem.difficulty) == (
        2.0,
        256_000_000,
        "codechef",
        "",
    )
    assert "Python function" in skipped(
        "apps", record | {"input_output": json.dumps({"inputs": [1], "outputs": [1], "fn_name": "f"})}
    )
    assert "no tests" in skipped("apps", record | {"input_output": ""})
    folder = tmp_path / "train" / "0000"
    folder.mkdir(parents=True)
    (folder / "question.txt").write_text("Square.")
    (folder / "input_output.json").write_text(tests)
    (folder / "solutions.json").write_text('["print(2)"]')
    ((_, archived),) = load(SOURCES["apps"], str(tmp_path))
    assert (
        isinstance(archived, Loaded) and archived.problem.id == "apps/0000" and archived.solutions[0][1] == "print(2)"
    )


def test_gsm8k() -> None:
    record = {"question": "How much?", "answer": "48/2 = <<48/2=24>>24 each.\n6000 in all.\n#### 6,000"}
    problem = converted("gsm8k", record).problem
    assert problem.answer == "6000" and problem.solution == "48/2 = 24 each.\n6000 in all."
    assert "####" in skipped("gsm8k", {"question": "q", "answer": "24"})
    assert "'question'" in skipped("gsm8k", {"answer": "#### 24"})


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test data are not here")
@pytest.mark.parametrize("split, count", [("train", 200), ("test", 100)])
def test_real_gsm8k_rows(split: str, count: int) -> None:
    rows = [row for _, row in load(SOURCES["gsm8k"], str(SHARED / "gsm8k" / f"{split}.jsonl"))]
    problems = [row.problem for row in rows if isinstance(row, Loaded)]
    assert len(problems) == len({problem.id for problem in problems}) == count
    assert all(parse_number(problem.answer) is not None and "<<" not in problem.solution for problem in problems)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test data are not here")
def test_real_kattis_rows(tmp_path: Path) -> None:
    rows = [row for _, row in load(SOURCES["kattis"], str(SHARED / "kattis" / "problems.jsonl"))]
    problems = [row.problem for row in rows if isinstance(row, Loaded)]
    assert len(problems) == 148 and {p.checker.type for p in problems} <= {"tokens", "caseless", "float", "exact"}
    assert all(p.license.startswith("CC BY") and p.tests and 0 < p.time_limit <= 10 for p in problems)
    write_problems(tmp_path / "p.jsonl", problems)
    assert read_problems(tmp_path / "p.jsonl") == problems


def kattis_package(
    folder: Path, yaml: str, statement: str = "\\problemname{Sum}\n\\section*{Input}\nTwo \\emph{integers}."
) -> Path:
    for part in ("sample", "secret/group1"):
        (folder / "data" / part).mkdir(parents=True)
    (folder / "problem_statement").mkdir()
    (folder / "submissions" / "accepted").mkdir(parents=True)
    (folder / "problem.yaml").write_text(yaml)
    (folder / "problem_statement" / "problem.en.tex").write_text(statement)
    (folder / "data" / "sample" / "1.in").write_text("1 2\n")
    (folder / "data" / "sample" / "1.ans").write_text("3\n")
    (folder / "data" / "secret" / "group1" / "2.in").write_text("2 2\n")
    (folder / "data" / "secret" / "group1" / "2.ans").write_text("4\n")
    (folder / "submissions" / "accepted" / "a.py").write_text("print(3)")
    (folder / "submissions" / "accepted" / "b.cpp").write_text("int main() {}")
    return folder


def test_kattis_packages(tmp_path: Path) -> None:
    kattis_package(
        tmp_path / "sum", "name: Sum\nlicense: cc by-sa\nauthor: Ann\nlimits:\n  time_limit: 3\n  memory: 512\n"
    )
    kattis_package(tmp_path / "real", "name: Real\nvalidator_flags: float_tolerance 1e-4\n")
    two = "float_absolute_tolerance 1e-9 float_relative_tolerance 1e-6"
    kattis_package(tmp_path / "two", f"name: Two\nvalidator_flags: {two}\n")
    kattis_package(tmp_path / "custom", "name: Custom\nvalidation: custom\n")
    kattis_package(tmp_path / "talk", "name: Talk\nvalidation: custom interactive\n")
    found = {Path(where).name: row for where, row in load(SOURCES["kattis"], str(tmp_path))}
    assert isinstance(found["custom"], Skip) and isinstance(found["talk"], Skip)
    row = found["sum"]
    assert isinstance(row, Loaded)
    assert row.problem.statement == "# Sum\n\n## Input\n\nTwo *integers*."
    assert row.problem.tests == (Test("1 2\n", "3\n", True), Test("2 2\n", "4\n"))
    assert (row.problem.time_limit, row.problem.memory_limit) == (3.0, 512_000_000)
    assert row.problem.license == "cc by-sa, Ann" and row.problem.checker.type == "caseless"
    assert [language for language, _ in row.solutions] == ["cpp", "python"]
    real = found["real"]
    assert isinstance(real, Loaded) and (real.problem.checker.type, real.problem.checker.tolerance) == ("float", 1e-4)
    two_of_them = found["two"]
    assert isinstance(two_of_them, Loaded) and two_of_them.problem.checker.tolerance == 1e-6


def test_countdown_rows() -> None:
    problem = converted("countdown", {"nums": [44, 19, 35], "target": 98}).problem
    assert (problem.numbers, problem.answer, problem.difficulty) == ((44, 19, 35), "98", "3")
    assert problem.solution.endswith("= 98")
    assert "no solution" in skipped("countdown", {"nums": [1, 1], "target": 50})
    assert "'nums'" in skipped("countdown", {"nums": "44 19", "target": 98})


def test_humaneval_x() -> None:
    record = {
        "task_id": "CPP/0",
        "prompt": "#include<vector>\nusing namespace std;\nint twice(int x){\n",
        "declaration": "int twice(int x){\n",
        "canonical_solution": "    return 2 * x;\n}\n",
        "test": "#undef NDEBUG\n#include<assert.h>\nint main(){ assert(twice(2)==4); }",
        "example_test": "int main(){}",
    }
    found = converted("humaneval_x", record)
    harness = ["stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring", "iostream"]
    lines = [f"#include<{name}>" for name in harness]
    assert found.problem.preamble.split("\n")[:9] == lines and found.problem.preamble.count("vector") == 1
    assert found.problem.preamble.endswith("using namespace std;\nint twice(int x){\n")
    assert found.problem.tests_are_code and "int twice" in found.problem.statement
    assert "stdlib" not in found.problem.statement and found.problem.source == "humaneval-x"
    assert found.solutions == (("cpp", record["prompt"] + record["canonical_solution"]),)
    assert "not in C++" in skipped("humaneval_x", record | {"task_id": "Python/0"})
    crypto = converted("humaneval_x", record | {"prompt": "#include<openssl/md5.h>\n" + record["prompt"]})
    assert crypto.problem.libraries == ("crypto",) and not found.problem.libraries


def test_mbxp() -> None:
    record = {
        "task_id": "MBCPP/7",
        "prompt": "#include <bits/stdc++.h>\nusing namespace std;\n\n/** Twice. */\nint twice(int x) {\n",
        "entry_point": "twice",
        "language": "cpp",
        "canonical_solution": "    return 2 * x;\n}",
        "test": 'int main() { if (twice(2) != 4) throw runtime_error("no"); }',
    }
    found = converted("mbxp", record)
    assert (found.problem.id, found.problem.source) == ("mbxp/MBCPP/7", "mbxp")
    assert found.problem.preamble == record["prompt"] and found.problem.solution
    assert "MBJP tasks are not in C++" in skipped("mbxp", record | {"task_id": "MBJP/7", "language": "java"})
    assert not converted("mbxp", record | {"canonical_solution": None}).solutions


def test_q_rows_and_folders(tmp_path: Path) -> None:
    case = {
        "test_case_number": 1,
        "q_test_code": "show f 1;",
        "q_expected_output": "2\n",
        "python_test_code": "print(f(1))",
    }
    empty = {"test_case_number": 2, "q_test_code": "show f 0;", "q_expected_output": '""'}
    record = {
        "problem_name": "two-sum",
        "problem_description": "Add.",
        "difficulty": "Easy",
        "q_solution": "f:{x+1}",
        "test_cases": [case, empty],
    }
    found = converted("q", record)
    assert found.problem.tests == (Test("show f 1;", "2"), Test("show f 0;", "")) and found.problem.language == "q"
    assert found.solutions == (("q", "f:{x+1}"),) and found.problem.tests_are_code
    assert "no tests" in skipped("q", record | {"test_cases": []})
    folder = tmp_path / "two-sum"
    folder.mkdir()
    (folder / "problem_description.txt").write_text("Add.")
    for number in (1, 2, 10):
        (folder / f"q_test_case_{number}.q").write_text(f"show f {number};")
        (folder / f"q_exact_ans_test_case_{number}.txt").write_text(f"{number + 1}\n")
    ((_, row),) = load(SOURCES["q"], str(tmp_path))
    assert isinstance(row, Loaded) and [t.output for t in row.problem.tests] == ["2", "3", "11"]


def test_a_record_with_odd_values_is_skipped() -> None:
    odd = {**CODE_CONTESTS, "time_limit": {"seconds": "soon", "nanos": 0}}
    with pytest.raises(Skip, match="does not have the documented format"):
        convert_record(SOURCES["code_contests"], odd)


@pytest.mark.parametrize("odd", ["[" * 100_000, "1" * 5000], ids=["nested", "number"])
def test_a_field_that_json_cannot_hold_is_skipped(odd: str) -> None:
    with pytest.raises(Skip):
        convert_record(SOURCES["taco"], {"question": "Square.", "input_output": odd})
    with pytest.raises(Skip):
        private_tests(odd)


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "question.txt").write_text("Square.")
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(DatasetError, match=f"{tmp_path}: it cannot be read"):
        list(load(SOURCES["apps"], str(tmp_path)))


def test_a_broken_package_is_skipped(tmp_path: Path) -> None:
    for name, text in (("a", "{"), ("b", "- 1"), ("c", "name: c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "problem.yaml").write_text(text)
    reasons = [str(reason) for _, reason in load(SOURCES["kattis"], str(tmp_path))]
    assert reasons == ["problem.yaml is not valid YAML", "problem.yaml has no fields", "no statement in English"]


@pytest.mark.integration
@pytest.mark.skipif(not (SHARED / "mbxp").is_dir(), reason="the shared test data are not here")
@pytest.mark.parametrize(
    ("name", "file", "wrong"),
    [("mbxp", "mbxp/dev.jsonl", {"mbxp/MBCPP/150"}), ("humaneval_x", "humaneval_x/sample.jsonl", set())],
)
def test_canonical_solutions_of_real_benchmarks_are_accepted(name: str, file: str, wrong: set[str]) -> None:
    """MBCPP/150's own solution throws."""
    rows = [row for _, row in load(SOURCES[name], str(SHARED / file))]
    loaded = [row for row in rows if isinstance(row, Loaded) and row.solutions]
    assert len(rows) == len([row for row in rows if isinstance(row, Loaded)])
    with GraderPool(2, quiet=True) as pool:
        futures = {row.problem.id: grade(pool, row.solutions[0][1], row.problem) for row in loaded}
        refused = {name for name, future in futures.items() if not future.result().accepted}
    assert refused <= wrong and len(futures) > 15
