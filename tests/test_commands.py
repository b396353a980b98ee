"""The commands from outside: what they import, how fast they explain themselves, how they answer an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import one_sentence_errors

from adapters.config import AdapterError
from data.problems import DatasetError
from pipeline.bench.generation import BenchmarkError
from pipeline.config import ConfigError, Settings
from rewards.errors import GraderError
from rewards.problem import ProblemError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(p.stem for p in (ROOT / "scripts").glob("*.py") if "__main__" in p.read_text(encoding="utf-8"))
HEAVY = ("torch", "transformers", "trl", "vllm", "unsloth", "peft", "datasets")
HELP_SECONDS = 0.5
BLOCKED = """
import runpy, sys
blocked, folder, script = sys.argv[1].split(","), sys.argv[2], sys.argv[3]
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.path.insert(0, folder)
sys.argv = [script, *sys.argv[4:]]
runpy.run_path(f"{folder}/{script}.py", run_name="__main__")
"""


def without(libraries: tuple[str, ...], script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a Python that has not got these libraries."""
    command = [sys.executable, "-c", BLOCKED, ",".join(libraries), str(ROOT / "scripts"), script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("script", COMMANDS)
def test_help_needs_no_library_of_models_or_numbers(script: str) -> None:
    done = without((*HEAVY, "numpy", "scipy", "matplotlib"), script, "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout, done.stderr


@pytest.mark.alone
@pytest.mark.parametrize("script", COMMANDS)
def test_help_answers_in_half_a_second(script: str) -> None:
    """Of one core; the best of three, since other processes share its caches."""
    seconds = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, f"scripts/{script}.py", "--help"], cwd=ROOT, stdout=-3)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = status
        seconds.append(used.ru_utime + used.ru_stime)
    assert min(seconds) < HELP_SECONDS, seconds


def stored(path: Path, solved: int) -> Path:
    counts = {"checkpoint": [[int(i < solved), 1] for i in range(30)]}
    record = {"dataset": "starter", "temperature": 0.0, "policies": {"checkpoint": "run"}}
    record["per_problem"] = {"ids": [f"p{i}" for i in range(30)], "counts": counts}
    path.write_text(json.dumps(record))
    return path


def test_what_is_only_counted_or_shown_needs_no_torch(tmp_path: Path) -> None:
    a, b = stored(tmp_path / "a.json", 0), stored(tmp_path / "b.json", 20)
    compared = without(HEAVY, "eval", "--compare", a, b)
    assert compared.returncode == 0 and "solves more problems" in compared.stdout, compared.stderr
    ignored = without(HEAVY, "eval", "--compare", a, b, "--greedy")
    assert ignored.returncode == 2 and ignored.stderr.startswith("error: --greedy: two stored evaluations"), ignored
    power = without(HEAVY, "eval", "--power", "0.05", a)
    assert power.returncode == 0 and "problems with 4 completions" in power.stdout, power.stderr
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    Settings(model="starter", dataset="starter", eval_problems=4, max_samples=4).save(run / "config.yaml")
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    row = {"step": 1, "problem": "x", "completion": "y", "reward": 0.5, "verdict": "ACCEPTED", "passed": 1, "total": 1}
    (run / "rollouts" / "step-00001.jsonl").write_text(json.dumps(row) + "\n")
    report = without(HEAVY, "report", run)
    assert report.returncode == 0 and (run / "report.html").is_file(), report.stderr


def test_a_starter_is_evaluated_where_there_is_one_and_something_is_asked(tmp_path: Path) -> None:
    for arguments, said in (
        (["--only-evaluate", "--out", tmp_path], "--evaluate N"),
        (["--only-evaluate", "--evaluate", "4", "--out", tmp_path], "no model"),
        (["--only-evaluate", "--evaluate", "4", "--out", tmp_path / "none"], "no model"),
    ):
        done = without(HEAVY, "make_starter", *arguments)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_programs_are_graded_without_torch(tmp_path: Path) -> None:
    (tmp_path / "1.in").write_text("")
    (tmp_path / "1.ans").write_text("7")
    (tmp_path / "seven.cpp").write_text('#include <cstdio>\nint main() { printf("7"); }\n')
    done = without(HEAVY, "grade", "--tests", tmp_path, tmp_path / "seven.cpp")
    assert done.returncode == 0 and "ACCEPTED 1/1" in done.stdout, done.stderr


@pytest.mark.parametrize("kind", [AdapterError, BenchmarkError, ConfigError, DatasetError, GraderError, ProblemError])
def test_an_error_for_users_is_one_line_and_exit_code_2(kind: type[Exception], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        raise kind("what, where, what to do")
    assert end.value.code == 2 and capsys.readouterr().err == "error: what, where, what to do\n"


def test_any_other_error_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="a fault"), one_sentence_errors():
        raise ValueError("a fault of the program")


def test_a_wrong_setting_is_refused_by_every_command_in_the_same_words(tmp_path: Path) -> None:
    for script, arguments in (
        ("train", ["--max-samples", "0"]),
        ("sft", ["--max-samples", "0", "--output-dir", tmp_path / "x"]),
        ("prepare_data", ["gsm8k", "--out", tmp_path / "x.jsonl", "--held-out", "1"]),
        ("eval", ["--num-samples", "0"]),
        ("train", ["--ray-address", "auto", "--grader-nodes"]),
        ("eval", ["--baseline", "--ray-address", "127.0.0.1:1"]),
    ):
        done = without(HEAVY, script, *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.startswith("error: --") and done.stderr.count("\n") == 1, done.stderr
