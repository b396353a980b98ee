"""An adapter in the forms that other libraries read: a PEFT LoRA, PEFT's own TinyLoRA, or plain merged weights.

As LoRA, ΔW = (U Σ R) Vᵀ is a product of rank r already: A = Vᵀ, B = U Σ R, alpha = r. PEFT's TinyLoRA splits Σ as √Σ on
both sides, so its R' is Σ^½ R Σ^-½; folding that into P makes the two act the same, exactly. All factors are written
out: nothing is left to another machine's SVD. Left out: anything but dense layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.base import dense_weight, is_quantized
from adapters.config import TinyLoRAConfig
from adapters.merge import Rounding, merge_weight, salt_of
from adapters.tinylora import TinyLoRALinear, adapted_layers
from storage.files import write_tensors

PREFIX = "base_model.model."
ADAPTER_FILE = "adapter_model.safetensors"


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    """The adapter's weights, whole or not at all; each tensor in storage of its own, as safetensors wants it."""
    separate = {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_tensors(folder / ADAPTER_FILE, separate, {"format": "pt"})


def export_lora(model: nn.Module, folder: Path, base_model: str) -> None:
    """Write a PEFT LoRA adapter of rank r and alpha r to `folder`, in float32."""
    from peft import LoraConfig

    bank: Any = model.tinylora
    tensors = {}
    for name, layer in adapted_layers(model).items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.right
        tensors[f"{PREFIX}{name}.lora_B.weight"] = layer.left.float() @ layer.mixing()
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, tensors)
    LoraConfig(
        r=bank.config.rank,
        lora_alpha=bank.config.rank,
        lora_dropout=0.0,
        target_modules=list(bank.config.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
    ).save_pretrained(str(folder))


def peft_weight_tying(config: TinyLoRAConfig, modules: int) -> float | None:
    """PEFT's `weight_tying` that cuts `modules` into our groups, or None where its groups are others.

    PEFT makes max(1, round(N (1 − tying))) groups of N // groups modules, the last one taking the rest.
    """
    tying = 1 - config.groups / modules
    groups = max(1, round(modules * (1 - tying)))
    size = max(1, modules // groups)
    theirs = [min(index // size, groups - 1) for index in range(modules)]
    return tying if theirs == [config.group_of(index, modules) for index in range(modules)] else None


def export_peft_tinylora(model: nn.Module, folder: Path, base_model: str) -> None:
    """Write an adapter for PEFT's TinyLoRA tuner to `folder`, with factors and projections, in float32.

    Where PEFT would cut other groups, every module gets its own copy of its group's `v`: the same function.
    """
    from peft import TinyLoraConfig

    bank: Any = model.tinylora
    layers = adapted_layers(model)
    tying = peft_weight_tying(bank.config, len(layers))
    tensors: dict[str, Tensor] = {}
    for index, (name, layer) in enumerate(layers.items()):
        root = layer.left.float().norm(dim=0).sqrt()  # Σ^½
        inverse = torch.where(root > 0, 1 / root, torch.zeros_like(root))
        tensors[f"{PREFIX}{name}.tinylora_A"] = layer.right.float() * root.unsqueeze(1)
        tensors[f"{PREFIX}{name}.tinylora_B"] = layer.left.float() * inverse
        tensors[f"{PREFIX}{name}.tinylora_P"] = root.view(-1, 1) * layer.projections * inverse
        tensors[f"base_model.tinylora_v.{index if tying is None else layer.group}"] = bank.v[layer.group]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, tensors)
    TinyLoraConfig(
        r=bank.config.rank,
        u=bank.config.u,
        weight_tying=0.0 if tying is None else tying,
        save_projection=True,
        target_modules=list(bank.config.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
    ).save_pretrained(str(folder))


@torch.no_grad()
def merged_state(model: nn.Module, rounding: Rounding) -> dict[str, Tensor]:
    """The state of the plain model that acts as this one, on the CPU: adapted weights merged, 4-bit ones dequantised.

    Merged as a merging engine does (`adapters/merge.py`): with its rounding the served policy, bit for bit.
    """
    state: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, TinyLoRALinear):
            base = dense_weight(module.base_layer)
            merged = merge_weight(base, module.delta_weight().to(base.device), rounding, salt_of(name))
            state[f"{name}.weight"] = merged.cpu()
        elif is_quantized(module) and not name.endswith(".base_layer"):
            state[f"{name}.weight"] = dense_weight(module).cpu()
    for name, tensor in model.state_dict().items():
        plain = name.replace(".base_layer.", ".")
        packed = ".weight." in name  # a 4-bit weight's quantisation state
        if plain not in state and not packed and not name.startswith("tinylora."):
            state[plain] = tensor.cpu()
    return state
