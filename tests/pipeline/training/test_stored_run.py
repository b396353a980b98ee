"""A run that an earlier version of this project left behind can be continued and evaluated.

`stored_run/` is what was on disk after two of its steps, trained on a CPU at commit f5a2b11 with

    train.py --model model --task gsm8k --dataset questions.jsonl --no-vllm --u 4 --projections normal --seed 1
        --prompts-per-step 2 --num-generations 8 --max-prompt-length 512 --max-completion-length 32 --eval-problems 4

on the tiny model of the tests, less its pictures and its first checkpoint.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from adapters import read_checkpoint
from pipeline.run_folder import read_json, read_json_lines
from tests.forked import Forks
from tests.tiny_model import save_tiny_model

STORED = Path(__file__).with_name("stored_run")
OF_TRAINED_ROWS = {"mismatch", "step_kl", "step_kl_predicted", "step_kl_correction"}  # of a step that trains any

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the stored run was trained on a CPU, in float32"),
]


def command(forks: Forks, folder: Path, script: str, *arguments: str) -> None:
    done = forks.run(f"scripts/{script}", *arguments, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stored_run_continues_and_is_evaluated(forks: Forks, tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    save_tiny_model(tmp_path / "model")
    run, stored = tmp_path / "run", STORED / "run"
    command(forks, tmp_path, "train.py", "--resume", "--output-dir", "run", "--steps", "4")

    for name in ("metrics.jsonl", "evaluations.jsonl"):
        kept = (stored / name).read_text()
        assert (run / name).read_text().startswith(kept) and (run / name).read_text() != kept
    _, before, *new = read_json_lines(run / "metrics.jsonl")
    for record in new:
        later = {"idle", "step_signal", "step_kept"}  # than the stored run
        assert set(before) - set(record) <= OF_TRAINED_ROWS and set(record) <= set(before) | later
        assert set(record["seconds"]) == set(before["seconds"])
    assert [evaluation["step"] for evaluation in read_json_lines(run / "evaluations.jsonl")] == [0, 4]
    first = read_json_lines(stored / "rollouts" / "step-00002.jsonl")[0]
    assert set(read_json_lines(run / "rollouts" / "step-00004.jsonl")[0]) == set(first)
    assert read_checkpoint(run).v.tolist() != read_checkpoint(stored / "checkpoint-2").v.tolist()
    state = [torch.load(path / "optimizer.pt")["state"][0] for path in (stored / "checkpoint-2", run / "checkpoint-4")]
    assert [float(one["step"]) for one in state] == [2, 2 + sum(row["rows_trained"] > 0 for row in new)]
    summary = read_json(run / "summary.json")
    assert summary["resumed"] and summary["steps"] == 4 and summary["before"]["n"] == 2

    command(forks, tmp_path, "eval.py", "--checkpoint", "run", "--baseline", "--pass-at", "1", "--no-vllm")
    evaluation = json.loads((run / "eval.json").read_text())
    assert {evaluation[name]["pass@1"]["n"] for name in ("baseline", "checkpoint")} == {2}
