"""The run's folder: nothing is overwritten, nothing half-written is read, a resumed run does not repeat itself."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from pipeline.config import ConfigError, Settings, resolved
from pipeline.run_folder import RunFolder, check_folder, check_target, read_json, read_json_lines

CONFIG = resolved(Settings(dataset="x"), starter=True, gpu=False)


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path / "run"), "name")
    folder.append("metrics", {"step": 1})
    with pytest.raises(ConfigError, match="--resume"):
        RunFolder.create(str(tmp_path / "run"), "name")


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = staticmethod(lambda: datetime(2026, 1, 2, 3, 4, 5))

    monkeypatch.setattr("pipeline.run_folder.datetime", Clock)
    monkeypatch.chdir(tmp_path)
    names = [RunFolder.create(None, "name").path.name for _ in range(3)]
    assert names == ["name-20260102-030405", "name-20260102-030405-2", "name-20260102-030405-3"]


@pytest.mark.parametrize("left", ["evaluations.jsonl", "validation.jsonl", "best/best.json", "rollouts/x-00000.jsonl"])
def test_what_a_run_left_before_its_first_step_is_not_taken_over(left: str, tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path / "run"), "name")
    (folder.path / "notes.txt").touch()
    CONFIG.save(folder.path / "config.yaml")
    assert RunFolder.create(str(folder.path), "name").path == folder.path  # nothing of it would be used
    (folder.path / left).parent.mkdir(exist_ok=True)
    (folder.path / left).write_text("{}")
    with pytest.raises(ConfigError, match="add --resume to continue it, or choose another --output-dir"):
        RunFolder.create(str(folder.path), "name")
    assert RunFolder.resume(str(folder.path)).whole_checkpoint(CONFIG) == (0, None)
    assert (folder.path / left).read_text() == "{}"


def test_an_adapter_without_a_run_is_not_replaced(tmp_path: Path) -> None:
    """Such as an export, which holds the settings of its run, too."""
    (tmp_path / "tinylora.safetensors").touch()
    CONFIG.save(tmp_path / "config.yaml")
    said = f"^{tmp_path} holds an adapter without checkpoints, which .* replace: choose another --output-dir$"
    with pytest.raises(ConfigError, match=said):
        RunFolder.create(str(tmp_path), "name")
    with pytest.raises(ConfigError, match=said):
        RunFolder.resume(str(tmp_path)).whole_checkpoint(CONFIG)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("where", ["afile", "afile/x", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_refused(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").touch()
    with pytest.raises(ConfigError, match=f"^--output-dir {where}: the folder cannot be made"):
        RunFolder.create(where, "name")
    with pytest.raises(ConfigError, match="^--out x: the folder cannot be made .*choose another$"):
        check_folder(Path(where), "--out x")


def test_a_folder_is_checked_without_a_trace(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b", "--out x")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def test_the_command_that_resumes_is_one_for_a_shell() -> None:
    folder = Path("my runs/läuft's")
    assert shlex.split(RunFolder(folder).resume_command)[-2:] == ["--output-dir", str(folder)]


def test_a_resumed_run_may_be_told_its_own_settings_again(tmp_path: Path) -> None:
    from pipeline.training.run import stored_config

    folder = RunFolder(tmp_path)
    Settings(dataset="x", lr="0.001", u=8).save(tmp_path / "config.yaml")
    for told in ({"lr": 0.001}, {"lr": "1e-3"}, {"u": 8}, {"steps": 9}):
        assert stored_config(folder, told).u == 8
    for told, named in (({"lr": "auto"}, "--lr auto differs"), ({"u": 9}, "--u 9 differs from the run's 8")):
        with pytest.raises(ConfigError, match=named):
            stored_config(folder, told)


def test_resume_without_a_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no run under"):
        RunFolder.resume(None)
    with pytest.raises(ConfigError, match="contains no run"):
        RunFolder.resume("elsewhere")


def test_resume_takes_the_newest_run_that_has_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("failed", "newest", "older")):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        os.utime(run / "config.yaml", (1e9 - age, 1e9 - age))
    assert RunFolder.resume(None).path.name == "failed"  # as no other has one
    for name in ("newest", "older"):
        (tmp_path / "runs" / name / "checkpoint-3").mkdir()
    assert RunFolder.resume(None).path.name == "newest"


def test_truncation_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path / "run"), "name")
    for step in (1, 2, 3):
        folder.append("metrics", {"step": step})
    with (folder.path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 4, "rew')
    folder.truncate("metrics", 2)
    assert [r["step"] for r in read_json_lines(folder.path / "metrics.jsonl")] == [1, 2]


def test_a_target_that_cannot_be_written_is_refused_early(tmp_path: Path) -> None:
    check_target(tmp_path / "new" / "eval.json")
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file" / "eval.json", Path("/proc/eval.json")):  # where nothing can be made
        with pytest.raises(ConfigError, match="--out"):
            check_target(target)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for text, line in (('{"step": 1}\n{oops}\n', 2), ("\udcff\n", 1)):
        (tmp_path / "metrics.jsonl").write_text(text, errors="surrogateescape")
        with pytest.raises(ConfigError, match=f"metrics.jsonl, line {line}"):
            read_json_lines(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match="metrics.jsonl is damaged"):
        read_json(tmp_path / "metrics.jsonl")


def test_only_whole_checkpoints_count_and_two_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(str(tmp_path / "run"), "name")
    for step in (1, 2, 3, 10):
        (folder.partial / f"checkpoint-{step}").mkdir(parents=True)
        folder.publish_checkpoint(step)
    (folder.partial / "checkpoint-11").mkdir(parents=True)  # killed while writing
    assert [step for step, _ in folder.checkpoints()] == [3, 10]


def write_checkpoint(folder: RunFolder, step: int, tiny_model) -> Path:
    """The files of a trainer's checkpoint; archives in the form that torch writes."""
    import torch

    from adapters import save_checkpoint

    path = folder.path / f"checkpoint-{step}"
    path.mkdir()
    save_checkpoint(path, tiny_model, "tiny")
    (path / "trainer_state.json").write_text('{"global_step": 1}')
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(100)}, path / name)
    return path


def test_resuming_passes_over_damaged_checkpoints(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from adapters import TinyLoRAConfig, inject

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    inject(model, TinyLoRAConfig())
    folder = RunFolder.create(str(tmp_path / "run"), "name")
    assert folder.whole_checkpoint(CONFIG) == (0, None)
    first, second = (write_checkpoint(folder, step, model) for step in (1, 2))
    assert folder.whole_checkpoint(CONFIG) == (2, second)
    for name in ("optimizer.pt", "trainer_state.json", "tinylora.safetensors", "rng_state.pth"):
        whole = (second / name).read_bytes()
        flipped = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 255]) + whole[len(whole) // 2 + 1 :]
        for damaged in (b"", b"{}", whole[: len(whole) // 2], *([flipped] if name == "optimizer.pt" else [])):
            (second / name).write_bytes(damaged)
            assert folder.whole_checkpoint(CONFIG) == (1, first)
            assert "checkpoint-2 is damaged" in capsys.readouterr().out
        (second / name).write_bytes(whole)
    assert folder.whole_checkpoint(CONFIG) == (2, second)
    for path in (first, second):
        (path / "optimizer.pt").unlink()
    with pytest.raises(ConfigError, match="every checkpoint .* is damaged; start a new run"):
        folder.whole_checkpoint(CONFIG)


@pytest.mark.parametrize(
    ("setting", "name", "whole"),
    [
        ("staleness", "ahead.json", '{"version": 1, "v": [[0.5]]}'),
        ("dynamic_sampling", "dynamic_sampling.json", '{"position": 8, "share": 1.0}'),
    ],
)
def test_a_checkpoint_has_what_its_settings_need(
    setting: str, name: str, whole: str, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from adapters import TinyLoRAConfig, inject

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    inject(model, TinyLoRAConfig())
    folder = RunFolder.create(str(tmp_path / "run"), "name")
    first, second = (write_checkpoint(folder, step, model) for step in (1, 2))
    config = replace(CONFIG, **{setting: type(getattr(CONFIG, setting))(1)})
    (first / name).write_text(whole)
    assert folder.whole_checkpoint(CONFIG) == (2, second)
    assert folder.whole_checkpoint(config) == (1, first) and name in capsys.readouterr().out
    for damaged in (whole[:12], "{}", json.dumps(dict.fromkeys(json.loads(whole)))):
        (second / name).write_text(damaged)
        assert folder.whole_checkpoint(config) == (1, first)
    (second / name).write_text(whole)
    assert folder.whole_checkpoint(config) == (2, second)
