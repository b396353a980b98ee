"""Conversion of data sets: filters, copies, overlap, verification by programs, splits without leakage, accounts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.difficulty import parse_windows
from data.overlap import fingerprint, grams, groups, words
from data.prepare import held_out_path, prepare_dataset, split, spread, text_language, unique_ids
from data.problems import DatasetError, read_problems, write_problems
from data.settings import Preparation
from pipeline.run_folder import read_json_lines
from pipeline.tasks.code import TASK as CODE
from pipeline.tasks.problem_sets import read_dataset
from rewards.grader import needs
from rewards.problem import Problem, Test
from storage.errors import ConfigError

LONG = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron"  # 15 words


def row(name: str, statement: str, tests: int = 3, **more: Any) -> dict[str, Any]:
    columns = {"input": [f"{i}\n" for i in range(tests)], "output": [f"{2 * i}\n" for i in range(tests)]}
    return {"name": name, "description": statement, "public_tests": columns, "source": 2, "difficulty": 7} | more


def prepared(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[list[Problem], list[dict[str, Any]]]:
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "out.jsonl"
    prepare_dataset(Preparation("code_contests", str(out), location=str(raw), **options))
    return read_problems(out), read_json_lines(tmp_path / "out.jsonl.dropped.jsonl")


def test_filters_and_accounts(tmp_path: Path) -> None:
    rows = [
        row("good", "Double it."),
        row("copy", "  DOUBLE it!  "),
        row("few", "Halve it.", tests=1),
        row("hard", "Cube it.", difficulty=12),
        row("elsewhere", "Square it.", source=1),
        row("chinese", "求两个整数的和,然后输出。"),
        row("files", "Read it.", input_file="a.in"),
        row("large", "Triple it.", public_tests={"input": ["1", "2", "3" * 500], "output": ["1", "2", "3"]}),
    ]
    problems, dropped = prepared(
        tmp_path,
        rows,
        only_sources=("codeforces",),
        difficulty="A:B",
        min_tests=2,
        max_test_bytes=100,
        text_language="en",
    )
    assert [problem.id for problem in problems] == ["code_contests/good", "code_contests/large"]
    assert len(problems[1].tests) == 2
    reasons = {record.get("id", record.get("where", "")).rpartition("/")[2]: record["reason"] for record in dropped}
    assert reasons["copy"] == "a copy of code_contests/good"
    assert "fewer than --min-tests" in reasons["few"] and "outside the window" in reasons["hard"]
    assert "not among --source" in reasons["elsewhere"] and "not in en" in reasons["chinese"]
    assert reasons["large"] == "1 tests: larger than --max-test-bytes"
    assert "files" in reasons["raw.jsonl, line 7"] and len(dropped) == 7


def test_a_problem_that_loses_all_its_tests_is_dropped(tmp_path: Path) -> None:
    large = {"input": ["1" * 50, "2" * 50], "output": ["1", "2"]}
    rows = [row("good", "Double it."), row("large", "Triple it.", public_tests=large)]
    problems, dropped = prepared(tmp_path, rows, max_test_bytes=20)
    assert [problem.id for problem in problems] == ["code_contests/good"]
    assert [record["reason"] for record in dropped][-1] == "no test is left"


def test_ids_are_made_different_from_all_others() -> None:
    problems = [Problem(name, f"{index}") for index, name in enumerate(["a", "a", "a-2", "a", "b"])]
    assert [problem.id for problem in unique_ids(problems)] == ["a", "a-3", "a-2", "a-4", "b"]


def test_overlap_with_an_evaluation_set(tmp_path: Path) -> None:
    write_problems(
        tmp_path / "eval.jsonl", [Problem("e1", f"Story one. {LONG}. End."), Problem("e2", "Add two numbers.")]
    )
    phrase = "The first line of the input contains a single integer t, the number of test cases that follow"
    rows = [
        row("shares", f"Another story! {LONG.upper()} and so on"),
        row("same", "add  two NUMBERS"),
        row("fresh", "Multiply two numbers."),
        row("part", " ".join(LONG.split()[:12])),
        *(row(f"phrase{i}", f"Problem {i}. {phrase}.") for i in range(12)),
    ]
    write_problems(
        tmp_path / "more.jsonl", [Problem("e3", f"Something. {phrase}.")]
    )  # a phrase of many problems is no evidence
    problems, dropped = prepared(tmp_path, rows, against=(str(tmp_path / "eval.jsonl"), str(tmp_path / "more.jsonl")))
    assert {p.id.removeprefix("code_contests/") for p in problems} == {"fresh", "part"} | {
        f"phrase{i}" for i in range(12)
    }
    assert {d["id"]: d["reason"] for d in dropped} == {
        "code_contests/shares": "shares 3 13-grams with e1 of the evaluation set",
        "code_contests/same": "a copy of e2 of the evaluation set",
    }


RIGHT = '#include <cstdio>\nint main() { int n; scanf("%d", &n); printf("%d\\n", 2 * n); }'
WRONG = RIGHT.replace("2 * n", "n")
BROKEN = "int main() { return x; }"


def test_reference_solutions_are_graded(tmp_path: Path) -> None:
    def solved(*programs: str) -> dict[str, Any]:
        return {"solutions": {"language": [2] * len(programs), "solution": list(programs)}}

    rows = [
        row("right", "One.", **solved(RIGHT)),
        row("wrong", "Two.", **solved(RIGHT, WRONG)),
        row("broken", "Three.", **solved(BROKEN)),
        row("old compiler", "Four.", **solved(BROKEN, RIGHT)),
        row("python", "Five.", solutions={"language": [3], "solution": ["print(2 * int(input()))"]}),
        row("none", "Six."),
    ]
    problems, dropped = prepared(tmp_path, rows, workers=1)
    assert [p.id.rpartition("/")[2] for p in problems] == ["right", "old compiler", "python", "none"]
    reasons = {d["id"].rpartition("/")[2]: d["reason"] for d in dropped}
    assert reasons == {
        "wrong": "a reference solution is judged WRONG_ANSWER (1/3 tests)",
        "broken": "no reference solution passes (COMPILE_ERROR)",
    }
    assert len(prepared(tmp_path, rows, verify=False)[0]) == 6


def test_split_without_leakage(tmp_path: Path) -> None:
    rows = [row(f"p{i}", f"Story {i}. {LONG if i < 6 else ''} Task number {i} is another one.") for i in range(40)]
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "out.jsonl"
    counts = prepare_dataset(Preparation("code_contests", str(out), location=str(raw), held_out=0.25, seed=3))
    train, held_out = read_problems(out), read_problems(held_out_path(out))
    assert len(train) + len(held_out) == 40 and counts["held out"] == len(held_out) and 5 <= len(held_out) <= 10
    sides = [{p.id for p in side if "alpha" in p.statement} for side in (train, held_out)]
    assert sorted(map(len, sides)) == [0, 6]
    again = split(read_problems(out) + held_out, 0.25, 3)
    assert {p.id for p in again[0]} & {p.id for p in again[1]} == set()


def test_luogu_failures_have_a_file_of_their_own(tmp_path: Path) -> None:
    good = "# P1 题\n\n求和。\n\n### 样例 1\n\n**输入：**\n\n```\n1\n```\n\n**输出：**\n\n```\n1\n```\n"
    rows = [{"conversations": [{"from": "human", "value": text}]} for text in (good, good, "# P2 题\n\n没有样例。")]
    raw = tmp_path / "luogu_dpo.json"
    raw.write_text(json.dumps(rows))
    out = tmp_path / "l.jsonl"
    counts = prepare_dataset(Preparation("luogu", str(out), location=str(raw)))
    assert dict(counts) == {"dropped": 2, "kept": 1}
    (failed,) = read_json_lines(tmp_path / "failed_extraction.jsonl")
    assert failed["reason"] == "no sample was found" and failed["record"] == rows[2]


def test_bad_settings_and_empty_results(tmp_path: Path) -> None:
    for wrong in ({"held_out": 1.0}, {"text_language": "tlh"}, {"max_tests": 0}, {"difficulty": "easy:800"}):
        with pytest.raises(ConfigError):
            Preparation("gsm8k", "x.jsonl", **wrong)  # type: ignore[arg-type]
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DatasetError, match="empty.jsonl has no records"):
        prepare_dataset(Preparation("gsm8k", str(tmp_path / "none.jsonl"), location=str(tmp_path / "empty.jsonl")))
    assert not list(tmp_path.glob("none*"))
    with pytest.raises(DatasetError, match="no problem is left"):
        prepared(tmp_path, [row("few", "One.", tests=1)], min_tests=5)
    assert not (tmp_path / "out.jsonl").exists() and (tmp_path / "out.jsonl.dropped.jsonl").exists()


def test_spread_keeps_the_largest_test() -> None:
    tests = [Test("s", "", True), Test("t", "", True), *(Test("x" * n, "") for n in range(1, 30))]
    chosen = spread(tests, 6)
    assert len(chosen) == 6 and chosen[:2] == tests[:2] and chosen[-1] == tests[-1]
    assert spread(tests[:1], 1) == tests[:1] and len(spread([Test("a", "", True)] * 8, 4)) == 4


@pytest.mark.parametrize(
    "window, kept, left_out",
    [
        ("800:1200", ["800", "B 1000", "1200.0"], ["1201", "B", "easy", "", "nan"]),
        ("A:C", ["A", "b 3000", "C"], ["D", "1000", "easy"]),
        ("easy:medium", ["EASY", "medium", "Medium"], ["MEDIUM_HARD", "hard", "interview"]),
        (":B,easy", ["A", "EASY"], ["C", "medium"]),
        ("interview:", ["interview", "competition"], ["introductory", "hard"]),
    ],
)
def test_difficulty_windows(window: str, kept: list[str], left_out: list[str]) -> None:
    keeps = parse_windows(window)
    assert [d for d in kept + left_out if keeps(d)] == kept


@pytest.mark.parametrize("window", ["", ":", "easy:1200", "C:A", "tricky", "1:2:3", "a:b,"])
def test_bad_difficulty_windows(window: str) -> None:
    with pytest.raises(ConfigError):
        parse_windows(window)


def test_words_and_fingerprints() -> None:
    assert words("Ｈello, WORLD_2: 求和!") == ["hello", "world", "2", "求", "和"]
    assert fingerprint(Problem("a", "Add  Two.")) == fingerprint(Problem("b", "add two"))
    one, two = (Problem("c", f"Use {n}", numbers=n, answer="6") for n in ((1, 2, 3), (3, 2, 1)))
    assert fingerprint(one) == fingerprint(two)
    assert len(grams(Problem("d", LONG))) == 3
    found = groups([Problem("a", LONG), Problem("b", "x"), Problem("c", f"y {LONG}"), Problem("d", "X")])
    assert found[0] == found[2] != found[1] == found[3]


@pytest.mark.parametrize(
    "text, language",
    [
        ("Add two numbers $a$.", "en"),
        ("给定 n 个数", "zh"),
        ("数をたす", "ja"),
        ("Сумма чисел a и b", "ru"),
        ("12 + 3", "en"),
    ],
)
def test_text_language(text: str, language: str) -> None:
    assert text_language(text) == language


def test_problems_that_cannot_be_graded_here_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(needs, "missing_header", lambda header: f"{header} is missing (apt-get install libboost-dev)")
    common = {"canonical_solution": "    return 1;\n}\n", "test": "int main(){ return f() != 1; }\n"}
    rows = [
        {"task_id": "CPP/0", "prompt": "#include<vector>\nint f(){\n", **common},
        {"task_id": "CPP/22", "prompt": "#include<boost/any.hpp>\nint f(){\n", **common},
    ]
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(r) + "\n" for r in rows))
    prepare_dataset(Preparation("humaneval_x", str(tmp_path / "out.jsonl"), location=str(raw), workers=1))
    (kept,) = read_problems(tmp_path / "out.jsonl")
    (dropped,) = read_json_lines(tmp_path / "out.jsonl.dropped.jsonl")
    assert kept.id == "humaneval-x/CPP/0" and "boost/any.hpp is missing" in dropped["reason"]
    said = "humaneval-x/CPP/22 cannot be graded on this machine and is skipped: boost/any.hpp"
    assert said in capsys.readouterr().err
    source = f"humaneval_x:{raw}"
    assert [problem.id for problem in read_dataset(source, CODE)] == ["humaneval-x/CPP/0"]
    assert "humaneval-x/CPP/22: boost/any.hpp is missing" in capsys.readouterr().err
