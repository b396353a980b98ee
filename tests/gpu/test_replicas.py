"""Two replicas on two GPUs draw what one draws, up to arithmetic, and make the same step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.run_folder import read_json_lines

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")]


def train(folder: Path, replicas: int) -> list[dict[str, Any]]:
    sizes = ["--steps", "2", "--prompts-per-step", "16", "--num-generations", "8", "--eval-problems", "32"]
    options = ["--model", "starter", "--vllm", "--replicas", str(replicas), "--output-dir", str(folder)]
    command = [sys.executable, str(ROOT / "scripts/train.py"), *options, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_json_lines(folder / "metrics.jsonl")


def test_two_replicas_make_the_step_of_one(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    one, two = train(tmp_path / "one", 1), train(tmp_path / "two", 2)
    drawn = [read_json_lines(tmp_path / name / "rollouts" / "step-00001.jsonl") for name in ("one", "two")]
    same = sum(a["completion"] == b["completion"] for a, b in zip(*drawn, strict=True)) / len(drawn[0])
    assert same >= 0.8, f"only {same:.0%} of the completions are those of one replica"
    lanes = two[0]["replicas"]
    assert [lane["replica"] for lane in lanes] == [0, 1] and all(lane["tokens"] for lane in lanes)
    assert lanes[0]["tokens"] + lanes[1]["tokens"] == two[0]["tokens"]
    assert two[1]["mismatch"] < 1e-3
    first, second = (torch.tensor(record[0]["v"]) for record in (one, two))
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.8
