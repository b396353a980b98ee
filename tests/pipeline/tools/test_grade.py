"""`scripts/grade.py`, as people call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RIGHT = '#include <cstdio>\nint main() { int n; scanf("%d", &n); printf("%d", 2 * n); }\n'


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "grade.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    tests = [{"input": f"{n}\n", "output": f"{2 * n}\n"} for n in (1, 2, 3)]
    problem = {"id": "double", "statement": "Double it.", "tests": tests}
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    solutions = [RIGHT, RIGHT.replace("2 * n", "n * n"), "int main( {", RIGHT]
    lines = [json.dumps({"problem_id": "double", "source": source}) for source in solutions]
    (tmp_path / "solutions.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "tests").mkdir()
    for test in tests:
        (tmp_path / "tests" / f"{test['input'].strip()}.in").write_text(test["input"])
        (tmp_path / "tests" / f"{test['input'].strip()}.ans").write_text(test["output"])
    (tmp_path / "right.cpp").write_text(RIGHT)
    (tmp_path / "slow.cpp").write_text("int main() { for (volatile int i = 0;; i = i + 1); }\n")
    (tmp_path / "right.py").write_text("print(2 * int(input()))\n")
    return tmp_path


def test_lines(files: Path) -> None:
    done = run(files / "problems.jsonl", files / "solutions.jsonl", "--out", files / "verdicts.jsonl")
    assert done.returncode == 0, done.stderr
    verdicts = [json.loads(line) for line in (files / "verdicts.jsonl").read_text().splitlines()]
    assert [(v["problem_id"], v["index"]) for v in verdicts] == [("double", i) for i in range(4)]
    assert [v["verdict"] for v in verdicts] == ["ACCEPTED", "WRONG_ANSWER", "COMPILE_ERROR", "ACCEPTED"]
    assert [test["verdict"] for test in verdicts[1]["tests"]] == ["WRONG_ANSWER", "ACCEPTED", "WRONG_ANSWER"]
    assert all(test["cpu_s"] > 0 and test["memory_bytes"] > 0 for test in verdicts[0]["tests"])
    assert not list(files.glob("*.partial"))


def test_folder(files: Path) -> None:
    out = files / "verdicts.jsonl"
    limits = ("--time-limit", "0.1", "--memory-limit", "64", "--checker", "exact", "--out", out)
    done = run("--tests", files / "tests", files / "right.cpp", files / "slow.cpp", files / "right.py", *limits)
    assert done.returncode == 0, done.stderr
    verdicts = [json.loads(line)["verdict"] for line in out.read_text().splitlines()]
    assert verdicts == ["ACCEPTED", "TIME_LIMIT", "ACCEPTED"]
    assert "slow.cpp: TIME_LIMIT 0/3" in done.stdout


def test_a_tolerance_without_its_comparison_is_refused(files: Path) -> None:
    done = run(files / "problems.jsonl", files / "solutions.jsonl", "--out", files / "v.jsonl", "--tolerance", "1e-3")
    assert done.returncode and "--tolerance belongs to --checker float" in done.stderr
    assert not (files / "v.jsonl").exists()


def test_bad_input_is_one_sentence(files: Path) -> None:
    problems, solutions = files / "problems.jsonl", files / "solutions.jsonl"
    solutions.write_text(solutions.read_text() + '{"problem_id": "triple", "source": ""}\n')
    (files / "tests" / "2.ans").unlink()
    (files / "program.rs").write_text("fn main() {}")
    (files / "empty").mkdir()
    (files / "one").mkdir()
    for ending in ("in", "ans"):
        (files / "one" / f"1.{ending}").write_text("1\n")
    cases = [
        (("nowhere.jsonl", solutions, "--out", "x"), "nowhere.jsonl"),
        ((problems, solutions, "--out", files / "x"), "line 5"),
        ((solutions, solutions, "--out", files / "x"), "line 1"),
        ((problems, solutions), "--out"),
        (("--tests", files / "tests", files / "right.cpp"), "2.ans is missing"),
        (("--tests", files / "empty", files / "right.cpp"), "no tests"),
        (("--tests", files / "tests", files / "program.rs"), ".rs"),
        (("--tests", files / "tests", files / "right.cpp", "--checker", "best"), "best"),
        (("--tests", files / "tests", files / "right.cpp", "--time-limit", "0"), "time-limit"),
        (("--tests", files / "one", files / "right.cpp", "--time-limit", "nan"), "time_limit nan"),
        (("--tests", files / "one", files / "right.cpp", "--time-limit", "inf"), "time_limit inf"),
    ]
    for arguments, word in cases:
        done = run(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert word in done.stderr.strip().splitlines()[-1], done.stderr
        assert "Traceback" not in done.stderr
    assert not (files / "x").exists()


def test_tests_that_are_code(files: Path) -> None:
    test = {"input": "#include <cassert>\nint main() { assert(twice(2) == 4); }\n", "output": ""}
    problem = {"id": "t", "statement": "", "tests": [test], "tests_are_code": True, "preamble": "int twice(int x) {\n"}
    (files / "code.jsonl").write_text(json.dumps(problem))
    solutions = [json.dumps({"problem_id": "t", "source": f"return {n} * x; }}"}) for n in (2, 3)]
    (files / "bodies.jsonl").write_text("\n".join(solutions))
    done = run(files / "code.jsonl", files / "bodies.jsonl", "--out", files / "verdicts.jsonl")
    assert done.returncode == 0, done.stderr
    verdicts = [json.loads(line)["verdict"] for line in (files / "verdicts.jsonl").read_text().splitlines()]
    assert verdicts == ["ACCEPTED", "RUNTIME_ERROR"]
