"""A run whose grader gives no verdict at the end is summed up as far as it is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.evaluation.compare import compare_counts
from pipeline.report.curves import draw_curves
from pipeline.run_folder import RunFolder
from pipeline.training import lifecycle

BEFORE: dict[str, Any] = {"step": 0, "pass@1": {"pass_at_1": 0.5, "n": 4, "low": 0.2, "high": 0.8}}
AFTER: dict[str, Any] = {"step": 3, "pass@1": None}
COUNTED = {"compile_rate": 0.0, "mean_reward": 0.0}


def test_a_run_without_a_verdict_at_the_end_has_a_summary_and_a_picture(tmp_path: Path) -> None:
    summary: dict[str, Any] = {
        "before": lifecycle._held_out(BEFORE | COUNTED),
        "after": lifecycle._held_out(AFTER | COUNTED),
        "comparison": compare_counts(("the base", "the policy"), {"p": (2, 4)}, {"p": (0, 0)}, [1]),
        "split": "test",
        "trainable_scalars": 32,
        "wall_seconds": 60.0,
    }
    said = lifecycle._conclusion(summary, RunFolder(tmp_path))
    assert "0.500 [0.200, 0.800] before, unknown after; 0 completions each" in said
    assert "Nothing is known of a difference between the base and the policy" in said
    draw_curves([], summary, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_policy_without_a_verdict_is_not_the_best() -> None:
    kept: list[int] = []
    run: Any = SimpleNamespace(
        logs={"validation": [AFTER]},
        log=lambda name, record: run.logs[name].append(record),
        keep=lambda about, v: kept.append(about["step"]),
        record_of=lambda pending: pending.record,
    )
    for step, record in ((4, AFTER), (5, BEFORE), (6, AFTER), (7, BEFORE)):
        run.pending = SimpleNamespace(name="validation", step=step, v=None, record=record)
        lifecycle.Run.watch_judged(run)
    assert kept == [5] and len(run.logs["validation"]) == 5
