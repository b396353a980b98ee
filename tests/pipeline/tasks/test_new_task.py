"""One file makes a task: its name among the options, its data, its rewards; nothing else is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TASK_FILE = '''
"""Say whether a number is even or odd."""

from pipeline.tasks.prompts import Prompt
from pipeline.tasks.task import Generator, Reward, Task
from rewards.problem import Problem


def _problems(split, count, seed, purpose=None):
    first = 1000 * ("train", "held_out").index(split) + 100 * len(purpose or "")
    return [Problem(f"parity/{n}", str(n), answer="odd" if n % 2 else "even") for n in range(first, first + count)]


def _brief(prompts, completions, **columns):
    return [float(len(completion) < 10) for completion in completions]


TASK = Task(
    name="parity",
    prompts={"parity": Prompt("Is $statement even or odd?")},
    extract=lambda completion, problem: completion.strip() or None,
    is_right=lambda completion, problem: completion.strip() == problem.answer,
    rewards=(Reward("right", 1.0, of_verdict=lambda verdict, config: float(verdict.accepted)),
             Reward("brief", 0.5, of_text=_brief)),
    target=lambda problem: problem.answer,
    gradable=lambda problem: problem.answer in ("even", "odd"),
    advice="give 'numbers'",
    generator=Generator("numbers", _problems, lambda count, seed: _problems("train", count, seed), "starter"),
)
'''
SESSION = """
import pytest
from click.testing import CliRunner

import train
from pipeline.config import ConfigError, Settings, resolved
from pipeline.launch import prepare
from pipeline.tasks import task_of
from pipeline.tasks.graders import start_graders
from pipeline.tasks.problem_sets import load_problem_sets

assert "parity" in CliRunner().invoke(train.main, ["--help"]).output
_, config = prepare(Settings(task="parity", model="starter", eval_problems=5, max_samples=8, eval_every=1))
assert config.dataset == "numbers"
with pytest.raises(ConfigError, match="--dataset numbers is for --task parity, not for code"):
    load_problem_sets(resolved(Settings(dataset="numbers"), starter=True, gpu=False))
sets = load_problem_sets(config)
assert (len(sets.train), len(sets.held_out), len(sets.validation)) == (8, 5, 5)
task = task_of(config)
problem = sets.train[1]
assert task.prompt.messages(problem) == [{"role": "user", "content": "Is 1 even or odd?"}]
texts = [task.target(problem), "It is an odd number.", "even", ""]
with start_graders(config):
    verdicts = [task.grade(None, text, problem).result() for text in texts]
assert [verdict.status.name for verdict in verdicts] == ["ACCEPTED", "WRONG_ANSWER", "WRONG_ANSWER", "NO_CODE"]
scores = task.scores([problem] * 4, texts, verdicts, config)
assert task.totals(scores) == [1.5, 0.0, 0.5, 0.5]
"""


def test_a_file_in_the_folder_is_a_task(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pipeline" / "tasks" / "parity.py").write_text(TASK_FILE)
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "scripts")))
    done = subprocess.run([sys.executable, "-c", SESSION], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
