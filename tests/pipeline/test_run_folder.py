"""The run's folder: nothing is overwritten, nothing half-written is read, a resumed run does not repeat itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import ConfigError
from pipeline.run_folder import RunFolder, read_json_lines


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path / "run"), "name")
    folder.append("metrics", {"step": 1})
    with pytest.raises(ConfigError, match="--resume"):
        RunFolder.create(str(tmp_path / "run"), "name")


def test_resume_without_a_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no run under"):
        RunFolder.resume(None)
    with pytest.raises(ConfigError, match="holds no run"):
        RunFolder.resume("elsewhere")


def test_truncation_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path / "run"), "name")
    for step in (1, 2, 3):
        folder.append("metrics", {"step": step})
    with (folder.path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 4, "rew')
    folder.truncate("metrics", 2)
    assert [r["step"] for r in read_json_lines(folder.path / "metrics.jsonl")] == [1, 2]


def test_only_whole_checkpoints_count_and_two_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path / "run"), "name")
    for step in (1, 2, 3, 10):
        (folder.partial / f"checkpoint-{step}").mkdir(parents=True)
        folder.publish_checkpoint(step)
    (folder.partial / "checkpoint-11").mkdir(parents=True)  # killed while writing
    assert [step for step, _ in folder.checkpoints()] == [3, 10]
