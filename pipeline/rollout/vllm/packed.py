"""An engine without weights of its own: every layer's matrix is made from the trainer's packed NF4 codes when the layer
computes, in a scratch that all layers share.

- merge: the scratch takes round(W + ΔW), by the kernel of a refresh, so the engine computes with the very bits that an
  engine with weights of its own holds, for any number of rows; a refresh writes only R.
- beside (`lowrank.py`): the scratch takes W. Few rows go through bitsandbytes' fused product instead.

All addresses are fixed, so it can be captured in a graph. What it costs is a merge of all layers a step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters import TinyLoRA
from adapters.base import NF4_BLOCK, Packed
from adapters.merge import Rounding
from pipeline.rollout.engine import EngineError
from pipeline.rollout.vllm.fused import fused_place

FEW_ROWS = 16  # up to here bitsandbytes chooses between its fused product and its own dequantisation


class PackedWeights:
    """The adapted layers' matrices by the names of vLLM's fused layers. dtype: of activations.

    rounding: of merged weights, None where ΔW is added beside them.
    """

    def __init__(self, bank: TinyLoRA, rounding: Rounding | None, dtype: torch.dtype) -> None:
        self.merges, self.bases = rounding is not None, bank.bases()
        self.parts: dict[str, range] = {}  # modules of a fused layer; they follow one another
        for index, name in enumerate(bank.names):
            fused, position = fused_place(name)
            first = self.parts.get(fused, range(index, index)).start
            if first + position != index:
                raise EngineError(f"{name} does not follow the other parts of {fused}; use --engine-weights bf16")
            self.parts[fused] = range(first, index + 1)
        sizes = {name: [bank.layers[i].out_features for i in parts] for name, parts in self.parts.items()}
        widths = {name: bank.layers[parts.start].in_features for name, parts in self.parts.items()}
        device = bank.v.device
        scratch = torch.empty(max(sum(sizes[name]) * widths[name] for name in sizes), dtype=dtype, device=device)
        self.whole = {n: scratch[: sum(sizes[n]) * widths[n]].view(-1, widths[n]) for n in sizes}
        targets = [rows for name in sizes for rows in self.whole[name].split(sizes[name])]
        self.merger = bank.merger_into(targets, rounding or "nearest")
        # Zeros, which give W bit for bit, where ΔW is beside.
        self.mixings = torch.zeros(len(targets), bank.config.rank, bank.config.rank, device=device)
        self.one(0)  # compiles the kernel, which cannot be done while a graph is captured

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Raise `EngineError` where vLLM's fused layer has another shape than its parts."""
        if name not in self.whole or self.whole[name].shape != shape:
            raise EngineError(f"the engine's {name} is not made of the trainer's layers; use --engine-weights bf16")

    def write(self, mixings: Tensor) -> None:
        """Serve R (modules, r, r) float32 from now on."""
        self.mixings.copy_(mixings)

    def one(self, index: int) -> Tensor:
        """The matrix (out, in) that module `index` computes with, valid until another is made."""
        return self.merger.one(index, self.mixings)

    def product(self, name: str, x: Tensor, bias: Tensor | None) -> Tensor:
        """x Wᵀ + bias of a fused layer: x (rows, in) → (rows, out)."""
        parts = self.parts[name]
        bases = [self.bases[index] for index in parts]
        if not self.merges and x.is_cuda and len(x) <= FEW_ROWS and all(isinstance(base, Packed) for base in bases):
            y = torch.cat([_fused_product(x, base) for base in bases], dim=-1)
            return y if bias is None else y + bias
        self.merger.several(parts, self.mixings)
        return F.linear(x, self.whole[name], bias)


def _fused_product(x: Tensor, base: Any) -> Tensor:
    """x Wᵀ (rows, out) from packed codes, by bitsandbytes."""
    return torch.ops.bitsandbytes.gemm_4bit(
        x, base.codes.view(-1, 1), list(base.shape), base.absmax, NF4_BLOCK, base.state.quant_type
    )
