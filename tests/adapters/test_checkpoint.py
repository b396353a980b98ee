"""The adapter file: small, whole, and refused where it would mean another policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters import (
    AdapterError,
    TinyLoRAConfig,
    adapted_layers,
    inject,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from tests.tiny_model import save_tiny_model


def adapted(folder: Path, **config):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inject(model, TinyLoRAConfig(**config))
    return model


@pytest.fixture
def trained(tiny_model_folder: Path, tmp_path: Path) -> Path:
    model = adapted(tiny_model_folder, u=32, groups=2)
    torch.nn.init.normal_(model.tinylora.v)
    return save_checkpoint(tmp_path, model, "tiny")


def test_round_trip_is_exact_and_small(trained: Path, tiny_model_folder: Path) -> None:
    model = adapted(tiny_model_folder, u=32, groups=2)
    checkpoint = load_checkpoint(trained, model)
    assert torch.equal(model.tinylora.v, checkpoint.v) and checkpoint.v.abs().sum() > 0
    assert checkpoint.base_model == "tiny" and trained.stat().st_size < 10_000
    assert trained.name == "tinylora.safetensors" and list(trained.parent.iterdir()) == [trained]


def test_another_base_is_refused(trained: Path, tmp_path: Path) -> None:
    other = adapted(save_tiny_model(tmp_path / "other", seed=1), u=32, groups=2)
    with pytest.raises(AdapterError, match="was trained on tiny"):
        load_checkpoint(trained, other)


def test_another_config_is_refused(trained: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(AdapterError, match="groups=2"):
        load_checkpoint(trained, adapted(tiny_model_folder, u=32, groups=1))


def test_a_flipped_singular_pair_is_refused(trained: Path, tiny_model_folder: Path) -> None:
    model = adapted(tiny_model_folder, u=32, groups=2)
    for layer in adapted_layers(model).values():
        layer.left[:, 0] *= -1
        layer.right[0] *= -1
    with pytest.raises(AdapterError, match="other factors"):
        load_checkpoint(trained, model)


def test_missing_damaged_and_foreign_files_are_named(trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(AdapterError, match="no such file"):
        read_checkpoint(tmp_path / "nothing")
    stopped = tmp_path / "run" / "checkpoint-7"
    stopped.mkdir(parents=True)
    (stopped / trained.name).write_bytes(trained.read_bytes())
    with pytest.raises(AdapterError, match=f"no such file.* give {stopped}"):
        read_checkpoint(stopped.parent)
    data = trained.read_bytes()
    for size in (0, 7, 100, len(data) - 3):
        trained.write_bytes(data[:size])
        with pytest.raises(AdapterError, match="damaged"):
            read_checkpoint(trained)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"v": torch.zeros(2)}, foreign)
    with pytest.raises(AdapterError, match="not a TinyLoRA checkpoint"):
        read_checkpoint(foreign)


@pytest.mark.parametrize("v", [torch.zeros(2, 31), torch.zeros(64), torch.full((2, 32), float("nan"))])
def test_another_shape_or_no_number_is_damage(trained: Path, v: torch.Tensor) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(trained, framework="pt") as stored:
        probe, metadata = stored.get_tensor("probe"), stored.metadata()
    save_file({"v": v, "probe": probe}, trained, metadata=metadata)
    with pytest.raises(AdapterError, match="damaged"):
        read_checkpoint(trained)
