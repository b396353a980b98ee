"""Serving ΔW beside the frozen weights in vLLM: y = x Wᵀ + ((x Aᵀ) Rᵀ) Bᵀ inside the CUDA graph.

A refresh then writes only R, a few bytes a layer, and nothing is rounded into the weights; every token pays for the
extra products. vLLM builds its graphs when it loads the model, so the layers get their buffers there, by vLLM's own way
to add a kind of linear layer: a registered quantisation method. A = Vᵀ and B = U Σ are in the activations' dtype, x Aᵀ,
R and the sum are float32. On a GPU it takes two kernels: one reads x, one reads and writes y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adapters.tinylora import TinyLoRA, is_skinny

METHOD = "tinylora-lowrank"
RANK = "tinylora_rank"  # key in vLLM's additional_config
MOST_PARTS = 3  # of a fused layer that the kernel takes
ADAPTED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def lowrank_options(rank: int) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that make it build its layers with room for a rank-r update."""
    return {"quantization": METHOD, "additional_config": {RANK: rank}}


def register() -> None:
    """Make the method known to vLLM in this process; safe to call again."""
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    if METHOD in QUANTIZATION_METHODS:
        return

    class LowRankMethod(UnquantizedLinearMethod):
        def create_weights(self, layer: nn.Module, *args: Any, **options: Any) -> None:
            super().create_weights(layer, *args, **options)
            weight: Tensor = layer.weight  # type: ignore[assignment]
            rank = get_current_vllm_config().additional_config[RANK]
            sizes = options["output_partition_sizes"] if "output_partition_sizes" in options else args[1]
            layer.tinylora_sizes = list(sizes)  # type: ignore[assignment]
            out, width = weight.shape
            layer.register_buffer("tinylora_right", weight.new_zeros(len(sizes) * rank, width), persistent=False)
            layer.register_buffer("tinylora_left", weight.new_zeros(rank, out), persistent=False)
            mixing = weight.new_zeros(len(sizes), rank, rank, dtype=torch.float32)
            layer.register_buffer("tinylora_mixing", mixing, persistent=False)

        def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
            return add_lowrank(
                super().apply(layer, x, bias),
                x,
                layer.tinylora_right,
                layer.tinylora_mixing,
                layer.tinylora_left,
                layer.tinylora_sizes,
            )

    @register_quantization_config(METHOD)
    class LowRankConfig(QuantizationConfig):
        def get_name(self) -> str:  # type: ignore[override]
            return METHOD

        def get_supported_act_dtypes(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16, torch.float32]

        @classmethod
        def get_min_capability(cls) -> int:
            return 0

        @staticmethod
        def get_config_filenames() -> list[str]:
            return []

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> LowRankConfig:
            return cls()

        def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
            if not isinstance(layer, LinearBase):
                return None
            return LowRankMethod() if prefix.endswith(ADAPTED) else UnquantizedLinearMethod()


def add_lowrank(y: Tensor, x: Tensor, right: Tensor, mixing: Tensor, left: Tensor, sizes: list[int]) -> Tensor:
    """y + ((x Aᵀ) Rᵀ) Bᵀ, rounded once.

    y (..., out) of parts of the given sizes, x (..., in), right (parts · r, in), mixing (parts, r, r) float32, left (r,
    out). In place where the kernels can do it.
    """
    parts, rank, _ = mixing.shape
    if is_skinny(x, right) and x.dim() == 2 and parts <= MOST_PARTS:
        from adapters.kernels.lowrank import add_mixed
        from adapters.kernels.skinny import skinny_product

        return add_mixed(y, skinny_product(x, right), mixing, left, sizes)
    hidden = nn.functional.linear(x, right).float().unflatten(-1, (parts, 1, rank))
    mixed = (hidden * mixing).sum(dim=-1)  # (..., parts, r)
    served, start = [], 0
    for part, size in enumerate(sizes):
        columns = slice(start, start + size)
        total = y[..., columns].float()
        for k in range(rank):
            total = total + mixed[..., part, k, None] * left[k, columns].float()
        served.append(total.to(y.dtype))
        start += size
    return served[0] if parts == 1 else torch.cat(served, dim=-1)


class LowRank:
    """The R of all layers in one tensor, `mixings` (modules, r, r) float32, and the buffers that are read from."""

    def __init__(self, bank: TinyLoRA, places: list[tuple[nn.Module, int]]) -> None:
        rank = bank.config.rank
        self.places = places
        self.mixings = torch.zeros(len(places), rank, rank, device=bank.v.device)
        for layer, (fused, position) in zip(bank.layers, places, strict=True):
            sizes: Any = fused.tinylora_sizes
            start = sum(sizes[:position])
            right: Any = fused.tinylora_right
            left: Any = fused.tinylora_left
            right[position * rank : (position + 1) * rank].copy_(layer.right)
            left[:, start : start + sizes[position]].copy_(layer.left.mT)

    def write(self, mixings: Tensor) -> None:
        """Write R (modules, r, r) float32 into every layer."""
        self.mixings.copy_(mixings)
        targets = [fused.tinylora_mixing[position] for fused, position in self.places]  # type: ignore[index]
        torch._foreach_copy_(targets, list(self.mixings.unbind()))
