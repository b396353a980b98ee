"""What steps consisted of, from a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bench.steps import measure
from pipeline.config import ConfigError, Settings
from pipeline.run_folder import RunFolder


def written(path: Path, steps: int, staleness: int = 1) -> Path:
    """Steps of 10 s: 4 generating, 3 training, 8 of all graders' work; the first takes longer."""
    folder = RunFolder.create(str(path), "run")
    Settings(model="starter", staleness=staleness).save(path / "config.yaml")
    folder.write_json("grader.json", {"workers": 2})
    for step in range(1, steps + 1):
        start, length = 100.0 * step, 50.0 if step == 1 else 10.0
        lanes = {"generate": [[start, start + 4]], "train": [[start + 6, start + 8], [start + 9, start + 10]]}
        folder.append("timeline", {"step": step, "start": start, "end": start + length, "lanes": lanes})
        idle = {"device": 0.3, "graders": 0.2}
        folder.append("metrics", {"step": step, "idle": idle, "seconds": {"grade_wait": 2.0}})
    return path


def test_a_step_is_judged_by_what_it_cannot_be_shorter_than(tmp_path: Path) -> None:
    rows = {row.what.partition(": ")[2]: row for row in measure([written(tmp_path / "run", 6)], 9.5)}
    assert rows["seconds a step"].value == 10 and rows["seconds a step"].ok is False
    whole = rows["a step, against max(generate + train + refresh, grade)"]
    assert whole.baseline == pytest.approx(8) and whole.ok is False and whole.bar == "<= 1.15"
    assert rows["generating"].value == 4 and rows["training"].value == 3 and rows["evaluating"].value == 0
    assert rows["nothing generated, trained or refreshed"].value == pytest.approx(3)
    assert rows["of it waiting for verdicts"].value == 2
    (whole,) = [row for row in measure([written(tmp_path / "now", 6, 0)], None) if "against" in row.what]
    assert whole.ok is None


def test_a_short_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 5 steps"):
        measure([written(tmp_path / "run", 4)], None)
