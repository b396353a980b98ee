"""Trackers, each with its real library: the project's numbers arrive, and rollouts as a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.policy.models import STARTER_FOLDER
from pipeline.report.trackers import COLUMNS, TABLE_ROWS, log_rollouts, markdown_table, numbers
from tests.forked import ROOT

ROLLOUTS = [
    {"step": 3, "problem": f"p{i}", "verdict": "ACCEPTED", "reward": 1.0, "completion": "int a | b;\n<script>"}
    for i in range(TABLE_ROWS + 4)
]
needs_starter = pytest.mark.skipif(
    not STARTER_FOLDER.is_dir(), reason="the starter model has not been made (scripts/make_starter.py)"
)


def test_records_become_numbers() -> None:
    record = {"step": 3, "reward": 0.5, "v": [1.0], "entropy": None, "seconds": {"generate": 2.0}, "verdicts": {"A": 3}}
    assert numbers(record) == {"reward": 0.5, "seconds/generate": 2.0, "verdicts/A": 3.0}


def test_a_table_keeps_its_shape_whatever_a_program_holds() -> None:
    lines = markdown_table([["1", "p", "A", 0.123456, None, 3, "a | b\n<x>"]]).split("\n")
    assert len(lines) == 3 and all(line.count("|") == len(COLUMNS) + 1 for line in lines)
    assert "0.1235" in lines[2] and "&lt;x>" in lines[2]


def test_none_needs_no_library() -> None:
    log_rollouts("none", [], 1, ROLLOUTS)


def test_tensorboard_gets_the_rollouts(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(tmp_path))
    log_rollouts("tensorboard", [SimpleNamespace(), SimpleNamespace(tb_writer=writer)], 3, ROLLOUTS)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Tensors("rollouts/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 3 and text.count("ACCEPTED") == TABLE_ROWS and "p0" in text


@pytest.mark.integration
def test_wandb_gets_the_rollouts_offline(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    with wandb.init(mode="offline", dir=str(tmp_path), project="test"):
        log_rollouts("wandb", [], 3, ROLLOUTS)
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/rollouts*.json")
    stored = json.loads(table.read_text())
    assert stored["columns"] == list(COLUMNS) and len(stored["data"]) == TABLE_ROWS


@pytest.mark.integration
@needs_starter
@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_run_reports(tracker: str, tmp_path: Path) -> None:
    """In a new Python, not in a fork: trackers have threads and processes of their own."""
    pytest.importorskip(tracker, reason=f"{tracker} is not installed")
    options = ["--model", "starter", "--no-vllm", "--steps", "1", "--prompts-per-step", "2", "--num-generations", "2"]
    options += ["--eval-problems", "2", "--max-samples", "10", "--report-to", tracker]
    options += ["--output-dir", str(tmp_path / "run")]
    command = [sys.executable, str(ROOT / "scripts/train.py"), *options]
    env = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    if tracker == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        wanted = {"train/reward", "train/kl_base", "train/v_norm", "train/seconds/generate"}
        assert wanted <= set(events.Tags()["scalars"])
        assert "rollouts/text_summary" in events.Tags()["tensors"]
    elif tracker == "wandb":
        assert list((tmp_path / "run").glob("wandb/offline-run-*/files/media/table/rollouts*.json"))
    else:
        assert any((tmp_path / "run" / "trackio").iterdir())
