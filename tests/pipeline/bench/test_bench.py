"""What the benchmarks share (picture, clock, programs to grade), their command line, and those of a policy on the
starter."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import Future
from pathlib import Path

import bench as script
import pytest
from click.testing import CliRunner
from PIL import Image

from data.problems import write_problems
from pipeline.bench.chart import draw_rows
from pipeline.bench.form import Row, row
from pipeline.bench.programs import Programs, contest_tasks, real_tasks, workloads
from pipeline.bench.scale import shared_phases
from pipeline.bench.timing import device_seconds, once
from pipeline.bench.train_step import ProgramGrader, problems_of_length
from pipeline.policy.models import STARTER_FOLDER
from pipeline.rollout.streaming import Grading
from rewards.grader.harness import grade
from rewards.grader.pool import GraderPool
from rewards.problem import Problem, Test
from rewards.verdict import Status, Verdict
from tests.forked import Forks

ROW_KEYS = ["what", "value", "unit", "baseline", "ratio", "bar", "ok"]
ROWS = [
    row("against a baseline", 3.0, "ms", baseline=2.0, at_most=1.2),
    row("of a size of its own", 123_456.0, "tokens/s"),
    row("nothing", 0.0, "ms"),
    row("below zero", -0.5, "ms", at_most=1.0),
]


def picture_size(folder: Path, rows: list[Row]) -> tuple[int, int]:
    draw_rows("a benchmark", rows, folder / "bench.png")
    assert [path.name for path in folder.iterdir()] == ["bench.png"]
    with Image.open(folder / "bench.png") as picture:
        picture.load()
        assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(2**24) or []) > 2
        return picture.size


def test_the_picture_grows_with_the_rows_and_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    one, four, many = (picture_size(tmp_path, rows) for rows in (ROWS[:1], ROWS, ROWS * 5))
    assert one[0] == four[0] == many[0] and one[1] < four[1] < many[1]


def sleeps(*seconds: float):
    rest = list(seconds)
    return lambda: time.sleep(rest.pop(0)), rest


def test_the_clock_gives_the_median_without_the_warm_up() -> None:
    work, rest = sleeps(0.2, 0.2, 0.01, 0.15, 0.03, 0.0, 0.15)
    assert 0.03 <= device_seconds(work, repeats=5, warm_up=2) < 0.15
    assert not rest
    work, rest = sleeps(0.02)
    assert 0.02 <= once(work) < 1 and not rest


@pytest.mark.parametrize("tokens", [64, 300])
def test_statements_are_as_long_as_the_limit_allows(tiny_model_folder: Path, tokens: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    problems = problems_of_length(tokenizer, 12, tokens)
    lengths = [len(tokenizer(problem.statement).input_ids) for problem in problems]
    longest_word = max(len(word) for problem in problems for word in problem.statement.split())
    assert max(lengths) <= tokens < min(lengths) + longest_word + 2  # a byte is a token; one more space and word
    assert len({problem.statement for problem in problems}) == len({problem.id for problem in problems}) == 12
    assert [problem.tests for problem in problems] == [task.problem.tests for task in contest_tasks(12)]


@pytest.mark.parametrize("kind", ["contest", "mbxp", "humaneval-x"])
def test_the_benchmarks_programs_are_right_and_different(kind: str) -> None:
    tasks = workloads(12)[kind]
    assert len({task.program for task in tasks}) == 12
    with GraderPool(2, quiet=True) as pool:
        futures = [grade(pool, task.source, task.problem) for task in tasks]
        assert [future.result().status for future in futures] == [Status.ACCEPTED] * 12
    if kind == "humaneval-x":  # as the benchmark's harness begins every program
        assert all(task.program.startswith("#include<stdlib.h>\n#include<algorithm>\n") for task in tasks)


def test_a_models_programs_are_those_that_training_would_grade(tmp_path: Path) -> None:
    asked = Problem("f", "", (Test("int main() {}", ""),), preamble="int twice(int x) {\n", tests_are_code=True)
    write_problems(tmp_path / "problems.jsonl", [asked])
    completion = "```cpp\nint twice(int x) { return 2 * x; }\n```\nas in\n```cpp\nint main() { twice(3); }\n```"
    (tmp_path / "completions.jsonl").write_text(json.dumps({"problem": "f", "completion": completion}) + "\n")
    (task,) = real_tasks(str(tmp_path / "problems.jsonl"), tmp_path / "completions.jsonl")
    assert task.source.startswith("int twice") and task.problem == asked


def test_even_rows_are_graded_right_and_odd_rows_wrong() -> None:
    problems = [task.problem for task in contest_tasks(4)]
    with GraderPool(1, quiet=True) as pool:
        grader = ProgramGrader(pool, problems)
        grading = grader.begin(problems)
        for index in (2, 0, 3, 1):
            grading.submit(index, "what the model wrote")
        verdicts = grading.collect()
        assert [verdict.status for verdict in verdicts] == [Status.ACCEPTED, Status.WRONG_ANSWER] * 2
        assert all(verdict.compiled for verdict in verdicts)
        assert grader.seconds_alone() > 0
        assert pool.counts["graded"] == 8 and not pool.counts["cached"]  # timed again, not remembered


def test_replicas_are_told_of_what_they_are_to_grade() -> None:
    problems, told = [task.problem for task in contest_tasks(2)], list[Grading]()
    with GraderPool(1, quiet=True) as pool:
        grader = ProgramGrader(pool, problems)
        grader.on_begin = told.append  # as `grade_where_drawn` sets it
        grading = grader.begin(problems)
        elsewhere: Future[Verdict] = Future()
        grading.graded_elsewhere(1, elsewhere)
        for row in range(2):
            grading.submit(row, "what the model wrote")
        elsewhere.set_result(Verdict(Status.TIME_LIMIT))
        assert [verdict.status for verdict in grading.collect()] == [Status.ACCEPTED, Status.TIME_LIMIT]
        assert told == [grading] and pool.counts["graded"] == 1


def test_no_measurement_is_answered_with_verdicts_of_the_one_before() -> None:
    problems = [task.problem for task in contest_tasks(2)]
    with GraderPool(1, quiet=True) as pool:
        for _ in range(2):
            grading = ProgramGrader(pool, problems).begin(problems)
            for index in range(2):
                grading.submit(index, "what the model wrote")
            grading.collect()
        assert pool.counts["graded"] == 4 and not pool.counts["cached"] + pool.counts["shared"]


def test_a_problem_has_the_same_programs_in_batches_of_every_size() -> None:
    few, many = Programs(3), Programs(9)
    for problem in (task.problem for task in contest_tasks(3)):
        for kind in range(2):
            one, other = (programs.of(kind, problem).rpartition("//")[0] for programs in (few, many))
            assert one == other


def test_synchronisation_is_the_gradients_way_back_and_that_of_v_out() -> None:
    own = {"generate": 2.0, "train": 1.0, "share": 0.003, "gather": 0.004, "refresh": 0.003}
    others = [{"generate": 2.0 + n, "train": 1.0 - n, "share": 0.005 * n, "answer": 0.001} for n in (1, 0)]
    lanes = [{"replica": number, "seconds": seconds} for number, seconds in enumerate([own, *others])]
    found = shared_phases({"seconds": {"refresh": 0.005}, "replicas": lanes})
    assert found["sync"] == pytest.approx(0.009) and found["shares"] == 0.005
    assert (found["own generate"], found["others generate"], found["others train"]) == (2.0, 3.0, 1.0)
    assert shared_phases({"seconds": {"refresh": 0.005}}) == {}


def error_of(*arguments: str) -> str:
    done = CliRunner().invoke(script.bench, arguments, catch_exceptions=False)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.rstrip().endswith(line)
    return line


@pytest.mark.parametrize("name", script.bench.commands)
def test_every_command_explains_itself(name: str) -> None:
    done = CliRunner().invoke(script.bench, [name, "--help"], catch_exceptions=False)
    assert done.exit_code == 0 and "Usage:" in done.output
    assert f"bench-{name}.json" in "".join(done.output.split())  # wrapped anywhere


def test_the_json_must_not_lie_where_the_picture_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of("grader", "--out", "x.png").startswith("error: --out x.png: ")
    assert not list(tmp_path.iterdir())


def test_what_is_no_setting_of_a_run_is_refused_as_in_training() -> None:
    assert error_of("train-step", "--kv-dtype", "fp4") == "error: --kv-dtype must be one of auto, fp8, not 'fp4'"
    assert error_of("gain", "--grader-workers", "0") == "error: --grader-workers must be greater than 0, not 0"
    assert error_of("signal", "--u", "0") == "error: --u must be greater than 0, not 0"


@pytest.mark.parametrize("name", sorted(set(script.bench.commands) - {"grader", "steps", "learning"}))
def test_an_unknown_model_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(name, "--model", "./nowhere").startswith("error: --model ./nowhere: no such folder")
    (tmp_path / "empty").mkdir()
    assert error_of(name, "--model", "empty").startswith("error: --model empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.integration
@pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="the starter has not been made (scripts/make_starter.py)")
@pytest.mark.parametrize(
    "command",
    [
        "init",
        "refresh",
        "train-step --steps 1 --prompts 2 --generations 2",
        "mismatch --steps 1 --prompts 1",
        "causes --prompts 1 --tokens 8",
    ],
)
def test_every_benchmark_of_the_policy_runs_on_the_starter(forks: Forks, command: str, tmp_path: Path) -> None:
    name = command.split()[0]
    if name != "init":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    done = forks.run("scripts/bench.py", *command.split(), "--out", "results.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrote results.json and results.png" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"machine", "versions", "rows"}
    assert results["machine"]["cores"] >= 1 and results["versions"]["torch"]
    assert len(results["rows"]) > 4
    for one in results["rows"]:
        assert list(one) == ROW_KEYS
        numbers = [one["value"], one["baseline"], one["ratio"]]
        assert all(number is None or math.isfinite(number) for number in numbers), one
        assert one["value"] is not None and isinstance(one["what"], str) and one["unit"]
        assert (one["ok"] is None) == (one["bar"] == "")
    if name == "mismatch":
        assert {one["ok"] for one in results["rows"]} == {None, True}
    with Image.open(tmp_path / "results.png") as picture:
        picture.load()
        assert picture.format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.png"]
