"""Checkpoints with the exact shapes of Qwen2.5-Coder and random bfloat16 weights.

Speed and memory depend on shapes, not on what was learned, so these are measured with such a checkpoint where the real
weights cannot be downloaded. What it generates is noise. The tokenizer is the bundled starter's, whose vocabulary is
far smaller than the model's (which keeps Qwen's size, for the cost of the logits): most sampled ids stand for no token
and decode to nothing. `shape.json` in the folder says which shape and seed it is and lists the files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.environment import prepare_environment
from pipeline.policy.models import STARTER_FOLDER
from pipeline.policy.weights import write_weights
from pipeline.run_folder import read_json
from storage.files import write_json

FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "tie_word_embeddings", "vocab_size",
)  # fmt: skip
# The config.json of Qwen/Qwen2.5-Coder-*-Instruct. The biases of q, k and v are part of Qwen2, not of its config.
SHAPES: dict[str, dict[str, int]] = {
    name: dict(zip(FIELDS, values, strict=True))
    for name, values in {
        "0.5b": (896, 4864, 24, 14, 2, True, 151936),
        "1.5b": (1536, 8960, 28, 12, 2, True, 151936),
        "3b": (2048, 11008, 36, 16, 2, True, 151936),
        "7b": (3584, 18944, 28, 28, 4, False, 152064),
        "14b": (5120, 13824, 48, 40, 8, False, 152064),
    }.items()
}
COMMON: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
}
SIZE_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers")
RECORD = "shape.json"


def shape_name(architecture: Mapping[str, Any]) -> str | None:
    """Which of `SHAPES` a model's config.json has, None for any other."""
    for name, shape in SHAPES.items():
        if all(architecture.get(field) == shape[field] for field in SIZE_FIELDS):
            return name
    return None


@dataclass(frozen=True)
class ShapeCheckpoint:
    """`parameters` counts tied embeddings once; `size` is that of the weights in bytes; `new` is False where the folder
    was there already."""

    parameters: int
    size: int
    new: bool


def write_shape(name: str, folder: Path, seed: int, device: str = "cpu") -> ShapeCheckpoint:
    """Write the checkpoint of `SHAPES[name]` to `folder`, which appears whole or not at all.

    `device` (cpu or cuda) draws the numbers, one tensor at a time; one shard at a time is held in memory. A seed gives
    the same weights again on the same kind of device only. Raises `ConfigError` where `folder` holds anything but this
    shape with this seed, and where there is no room.
    """
    wanted = {"shape": name, **SHAPES[name], "seed": seed}
    present = _already_there(folder, wanted)
    prepare_environment(str(STARTER_FOLDER))
    weights = dict(meta_model(name).named_parameters())
    parameters = sum(weight.numel() for weight in weights.values())
    size = sum(weight.nbytes for weight in weights.values())
    if present:
        return ShapeCheckpoint(parameters, size, new=False)
    target = folder.resolve()  # of a link to a larger disk, the folder there
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be created ({error.strerror}); choose another") from None
    try:
        free = shutil.disk_usage(partial).free
        if free < size:
            raise ConfigError(f"--out {folder}: {name} takes {size / 1e9:.1f} GB, and only {free / 1e9:.1f} are free")
        _write_settings(name, partial)
        _write_weights(weights, partial, seed, device)
        write_json(partial / RECORD, {**wanted, "drawn_on": device, "files": _file_sizes(partial)})
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ShapeCheckpoint(parameters, size, new=True)


def _already_there(folder: Path, wanted: dict[str, Any]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if wanted.items() <= record.items() and record["files"].items() <= _file_sizes(folder).items():
        return True
    raise ConfigError(
        f"--out {folder} exists and is not a complete {wanted['shape']} of seed {wanted['seed']}; delete it or choose "
        "another"
    )


def _file_sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != RECORD}


def shape_config(name: str) -> Any:
    """The `transformers.Qwen2Config` of a shape; end and padding are the starter tokenizer's."""
    from transformers import AutoTokenizer, Qwen2Config

    tokenizer = AutoTokenizer.from_pretrained(STARTER_FOLDER)
    return Qwen2Config(
        **SHAPES[name],
        **COMMON,
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def meta_model(name: str) -> Any:
    """The model of a shape in bfloat16 on torch's meta device: names and shapes of the parameters, no numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape_config(name), dtype=torch.bfloat16)


def _write_settings(name: str, folder: Path) -> None:
    shape_config(name).save_pretrained(folder)
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(STARTER_FOLDER / file, folder)
    # The starter's own limit would cut prompts that the shape has room for.
    length = {"model_max_length": COMMON["max_position_embeddings"]}
    write_json(folder / "tokenizer_config.json", read_json(STARTER_FOLDER / "tokenizer_config.json") | length)


def _write_weights(weights: dict[str, Any], folder: Path, seed: int, device: str) -> None:
    """Draw the tensors that `weights` describes (on the meta device) and write them."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    write_weights(weights, lambda name: draw(name, weights[name].shape, generator), folder)


def draw(name: str, shape: Any, generator: Any) -> Any:
    """One parameter, bfloat16 on the CPU, as transformers initialises a Qwen2: norms 1, biases 0, else normal."""
    import torch

    tensor = torch.empty(shape, dtype=torch.bfloat16, device=generator.device)
    if name.endswith("norm.weight"):
        tensor.fill_(1.0)
    elif name.endswith(".bias"):
        tensor.zero_()
    else:
        tensor.normal_(0.0, COMMON["initializer_range"], generator=generator)
    return tensor.cpu()
