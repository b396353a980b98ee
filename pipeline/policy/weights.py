"""Writing a model's weights as transformers names them, one shard at a time in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from storage.files import write_json, write_tensors

SHARD_BYTES = 4_000_000_000


def write_weights(weights: Mapping[str, Any], tensor: Callable[[str], Any], folder: Path) -> None:
    """Write safetensors to `folder`, with an index where there are several.

    weights: parameter name → a tensor with its shape and dtype, which may be on the meta device. tensor: makes the one
    of a name, on the CPU; called once for each.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    plan = split_torch_state_dict_into_shards(dict(weights), max_shard_size=SHARD_BYTES)
    for file, names in plan.filename_to_tensors.items():
        # Not kept under a name: it would stay in memory while the next shard is made.
        write_tensors(folder / file, {name: tensor(name) for name in names}, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
