"""Serving ΔW beside the frozen weights in vLLM: y = x Wᵀ + ((x Aᵀ) Rᵀ) Bᵀ inside the CUDA graph.

A refresh then writes only R, a few bytes a layer, and nothing is rounded into the weights; every token pays for the
extra products. vLLM builds its graphs when it loads the model, so the layers get their buffers there (`layers.py`).
A = Vᵀ and B = U Σ are in the activations' dtype, x Aᵀ, R and the sum are float32. On a GPU it takes two kernels: one
reads x, one reads and writes y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adapters.merged import is_skinny
from adapters.tinylora import TinyLoRA

MOST_PARTS = 3  # of a fused layer that the kernel takes


def add_buffers(layer: nn.Module, sizes: list[int], width: int, rank: int) -> None:
    """Give a layer of parts of the given sizes the room for a rank-r update, zeros at first."""
    dtype = torch.get_default_dtype()  # vLLM sets it to that of activations while it builds a model
    layer.tinylora_sizes = list(sizes)  # type: ignore[assignment]
    shapes = {"right": (len(sizes) * rank, width), "left": (rank, sum(sizes))}
    for name, shape in shapes.items():
        layer.register_buffer(f"tinylora_{name}", torch.zeros(shape, dtype=dtype), persistent=False)
    mixing = torch.zeros(len(sizes), rank, rank, dtype=torch.float32)
    layer.register_buffer("tinylora_mixing", mixing, persistent=False)


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
