"""A run that is killed at random moments ends as if it had not been: one kill here, twenty with

python tests/pipeline/training/kill_run.py FOLDER --kills 20
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.policy.models import STARTER_FOLDER
from pipeline.run_folder import read_json, read_json_lines
from tests.forked import Forks

KILLS = os.environ.get("TINYLORA_KILLS", "1")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="no starter model (scripts/make_starter.py)"),
]


@pytest.mark.parametrize("staleness", ["0", "1"])
def test_killed_runs_end_like_one_left_alone(forks: Forks, tmp_path: Path, staleness: str) -> None:
    script = "tests/pipeline/training/kill_run.py"
    done = forks.run(script, str(tmp_path), "--kills", KILLS, "--staleness", staleness, cwd=tmp_path, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "output.txt").read_text()[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == int(KILLS) and result["differences"] == []


def test_sigterm_stops_after_the_step_with_a_checkpoint(forks: Forks, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--model", "starter", "--no-vllm", "--steps", "40", "--prompts-per-step", "2", "--num-generations", "4"]
    options += ["--eval-problems", "4", "--num-iterations", "2", "--output-dir", str(folder)]
    process = forks.start("scripts/train.py", *options, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while len(read_json_lines(folder / "metrics.jsonl")) < 1:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed = process.wait(120).stdout
    assert process.returncode == 143 and "stopped by SIGTERM after step" in printed and "--resume" in printed
    steps = [record["step"] for record in read_json_lines(folder / "metrics.jsonl")]
    assert 1 <= len(steps) < 40 and (folder / f"checkpoint-{steps[-1]}").is_dir()
    again = ["--resume", "--output-dir", str(folder), "--steps", str(steps[-1] + 1)]
    forks.run("scripts/train.py", *again, cwd=tmp_path).check_returncode()
    assert [record["step"] for record in read_json_lines(folder / "metrics.jsonl")] == [*steps, steps[-1] + 1]
    best = read_json(folder / "best" / "best.json")
    evaluations = {r["step"]: r["pass@1"]["pass_at_1"] for r in read_json_lines(folder / "evaluations.jsonl")}
    assert sorted(evaluations) == [0, steps[-1] + 1] and best == {"step": steps[-1] + 1}  # nothing was compared
