"""`export.py` as a whole: from a predecessor's file to a checkpoint, a LoRA and a model folder, and what it refuses."""

from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import AdapterError, read_checkpoint
from pipeline.config import ConfigError, Settings, load_config, resolved
from pipeline.policy.models import ModelChoice
from pipeline.tools.export import export, model_card, push

ROOT = Path(__file__).parents[3]


def seed_file(path: Path, modules: int, **changes) -> Path:
    v = torch.linspace(-0.2, 0.2, 32).bfloat16()
    fields = {"u_value": 32, "rank": 2, "seed": 42, "model_id": "owner/name", "total_replaced_layers": modules}
    torch.save({"global_v": v} | fields | changes, path)
    return path


def test_what_cannot_be_exported_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    stored = seed_file(tmp_path / "tiny_lora_v.pt", 14)
    nameless = seed_file(tmp_path / "nameless.pt", 14, model_id="")
    for arguments, error, match in (
        ((nameless, "lora", tmp_path / "out"), AdapterError, "give it with --model"),
        ((stored, "lora", full), ConfigError, "exists already"),
        ((stored, "lora", tmp_path / "out"), AdapterError, "add --variant"),
        ((tmp_path / "none.pt", "lora", tmp_path / "out"), AdapterError, "no such file"),
        ((full, "lora", tmp_path / "out"), AdapterError, "no such file"),
        ((tmp_path / "x.safetensors", "lora", tmp_path / "out"), AdapterError, "give its folder"),
    ):
        with pytest.raises(error, match=match):
            export(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "nameless.pt", "tiny_lora_v.pt"]


def test_an_export_takes_the_place_of_an_earlier_export_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no run, of no folder that holds one, and of nothing that somebody else made."""
    run, other, earlier = (tmp_path / "runs" / name for name in ("run", "other", "earlier"))
    for folder in (run / "best", run / "rollouts", other, earlier, run / "lora"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    Settings(model="starter").save(run / "config.yaml")
    card = model_card("lora", ModelChoice("starter", "", ""), resolved(Settings(), starter=True, gpu=False), run)
    for folder in (earlier, run / "lora"):
        (folder / "README.md").write_text(card)
    (tmp_path / "afile").touch()
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(other)
    before = sorted(tmp_path.rglob("*"))
    for checkpoint, out, match in (
        (run, run, "holds the checkpoint"),
        (run, tmp_path / "link", "holds the checkpoint"),
        (run / "best", run, "holds the checkpoint"),
        (run / "best", tmp_path / "runs", "holds the checkpoint"),
        (run, run / "best", "no earlier export"),
        (run / "best", run / "rollouts", "no earlier export"),
        (run, other, "the folder in which you are"),
        (run, Path("."), "the folder in which you are"),
        (run, tmp_path / "afile", "is a file"),
        (run, tmp_path / "afile" / "x", "cannot be made"),
    ):
        with pytest.raises(ConfigError, match=f"^--out {out}:? .*{match}"):
            export(checkpoint, "lora", out, overwrite=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no earlier export"):
        export(run, "lora", other, overwrite=True)
    for out in (earlier, run / "lora", run / "new", tmp_path / "new"):  # refused for the checkpoint alone
        with pytest.raises(AdapterError):
            export(run, "lora", out, overwrite=True)
    (earlier / "run").mkdir()  # made in an export by somebody else
    with pytest.raises(ConfigError, match="no earlier export"):
        export(run, "lora", earlier, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, earlier / "run"])


@pytest.mark.parametrize("rank, told", [(2, 8), (8, 8), (9, 16), (200, 256), (512, 512)])
def test_the_card_of_a_lora_names_a_rank_that_vllm_takes(rank: int, told: int) -> None:
    config = resolved(Settings(rank=rank), starter=True, gpu=False)
    assert f"max_lora_rank={told})" in model_card("lora", ModelChoice("starter", "", ""), config, Path("run"))


@pytest.mark.parametrize("form", ["lora", "peft-tinylora"])
def test_a_rounding_that_would_do_nothing_is_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^--rounding nearest: --format {form} merges no weights; leave it out$"):
        export(tmp_path, form, tmp_path / "out", rounding="nearest")


def test_an_upload_that_fails_says_why_and_where_the_export_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=f"--push-to-hub owner/name: .*{tmp_path}"):
        push(tmp_path, "owner/name")


@pytest.fixture
def signals_of_a_new_process() -> Iterator[None]:
    """But for SIGTERM, which is ignored; libraries that were used before have handlers of their own."""
    own: dict[int, Any] = {signal.SIGTERM: signal.SIG_IGN, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.integration
@pytest.mark.usefixtures("signals_of_a_new_process")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_an_export_that_is_ended_leaves_nothing(
    number: signal.Signals, code: int, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = seed_file(tmp_path / "tiny_lora_v.pt", 14)
    options = {"--out": tmp_path / "out", "--model": tiny_model_folder, "--quant": "none", "--variant": "diag-scaled"}
    arguments = [str(part) for option in options.items() for part in option]
    monkeypatch.setattr(sys, "argv", ["export.py", str(stored), *arguments])
    monkeypatch.setattr("pipeline.tools.export._write", lambda *_: signal.raise_signal(number))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")
    assert ended.value.code == code and list(tmp_path.iterdir()) == [stored]


@pytest.mark.integration
def test_a_predecessors_file_becomes_a_checkpoint_a_lora_and_a_model(tmp_path: Path, tiny_model_folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    stored = seed_file(tmp_path / "tiny_lora_v.pt", 14)
    imported = tmp_path / "imported"
    export(stored, "tinylora", imported, model=str(tiny_model_folder), quant="none", variant="diag-scaled")
    assert read_checkpoint(imported).config.projections == load_config(imported / "config.yaml").projections
    assert read_checkpoint(imported).v.tolist() == [torch.linspace(-0.2, 0.2, 32).bfloat16().tolist()]
    with pytest.raises(ConfigError, match="--variant is for imported"):
        export(imported, "lora", tmp_path / "x", variant="diag")
    export(imported, "lora", tmp_path / "lora")
    export(imported, "merged", tmp_path / "merged")
    assert "32 numbers" in (tmp_path / "lora" / "README.md").read_text()
    ids = torch.arange(5, 45).unsqueeze(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        before = base(ids).logits.log_softmax(-1)
        lora = PeftModel.from_pretrained(base, tmp_path / "lora").eval()(ids).logits.log_softmax(-1)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
        torch.testing.assert_close(merged(ids).logits.log_softmax(-1), lora, rtol=0, atol=1e-4)
    assert (lora - before).abs().max() > 0.01
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
