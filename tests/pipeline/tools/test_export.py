"""`export.py` as a whole: from a predecessor's file to a checkpoint, a LoRA and a model folder, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters import AdapterError, read_checkpoint
from pipeline.config import ConfigError, load_config
from pipeline.tools.export import export, push


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


def test_an_upload_that_fails_says_why_and_where_the_export_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=f"--push-to-hub owner/name: .*{tmp_path}"):
        push(tmp_path, "owner/name")


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
