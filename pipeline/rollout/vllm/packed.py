"""An engine without weights of its own: every layer computes from the trainer's packed NF4 codes.

- Few rows go through one kernel that decodes as it multiplies, with ΔW beside, exact (`adapters/kernels/few_rows.py`),
  unless merged weights are rounded to nearest.
- For more rows the layer's matrix is made when the layer computes, in a scratch that all layers share. merge: the
  scratch takes round(W + ΔW), by the kernel of a refresh, so the engine computes with the very bits that an engine with
  weights of its own holds. beside (`lowrank.py`): the scratch takes W.

All addresses are fixed, so it can be captured in a graph, and a refresh writes only R.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapters import TinyLoRA
from adapters.base import SIXTEEN_BITS, Packed
from adapters.merge import Rounding
from pipeline.rollout.engine import EngineError
from pipeline.rollout.vllm.fused import fused_place

MOST_RANK = 32  # of which all GPUs have room for Vᵀ beside the codes, in the memory that a program shares


def takes_few_rows(bank: TinyLoRA, rounding: Rounding | None, dtype: torch.dtype) -> bool:
    """Whether few rows go through the kernel of few rows, which adds the exact update. Not where merged weights are
    rounded to nearest: that drops most of a small update, so many rows, and the trainer, have another policy."""
    on_gpu = bank.v.device.type == "cuda" and dtype in SIXTEEN_BITS
    packed = all(isinstance(base, Packed) and base.state.quant_type == "nf4" for base in bank.bases())
    return on_gpu and packed and rounding != "nearest" and bank.config.rank <= MOST_RANK


class PackedWeights:
    """The adapted layers' matrices by the names of vLLM's fused layers. dtype: of activations.

    rounding: of merged weights, None where ΔW is added beside them.
    """

    def __init__(self, bank: TinyLoRA, rounding: Rounding | None, dtype: torch.dtype) -> None:
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
        self.mixings = torch.zeros(len(targets), bank.config.rank, bank.config.rank, device=device)
        # Zeros, which give W bit for bit, where ΔW is beside.
        self.merged = self.mixings if rounding else torch.zeros_like(self.mixings)
        self.one(0)  # compiles the kernel, which cannot be done while a graph is captured
        self.few: Any = None
        if takes_few_rows(bank, rounding, dtype):
            from adapters.kernels.few_rows import FewRows

            lefts, rights = [layer.left for layer in bank.layers], [layer.right for layer in bank.layers]
            self.few = FewRows(bank.bases(), lefts, rights, self.parts.values(), dtype)  # type: ignore[arg-type]

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Raise `EngineError` where vLLM's fused layer has another shape than its parts."""
        if name not in self.whole or self.whole[name].shape != shape:
            raise EngineError(f"the engine's {name} is not made of the trainer's layers; use --engine-weights bf16")

    def compile(self, name: str, bias: Tensor | None, wide: bool) -> None:
        """Compile the products of few rows of `name`, which cannot be done while a graph is captured."""
        if self.few is not None:
            for rows in self.few.KINDS:
                x = torch.zeros(rows, self.whole[name].shape[1], dtype=self.few.dtype, device=self.mixings.device)
                self.with_update(name, x, bias, wide)

    def write(self, mixings: Tensor) -> None:
        """Serve R (modules, r, r) float32 from now on."""
        self.mixings.copy_(mixings)

    def one(self, index: int) -> Tensor:
        """The matrix (out, in) that module `index` computes with for many rows, valid until another is made."""
        return self.merger.one(index, self.merged)

    def are_few(self, x: Tensor) -> bool:
        """Whether `with_update` takes the rows x."""
        return self.few is not None and len(x) <= self.few.MOST

    def with_update(self, name: str, x: Tensor, bias: Tensor | None, wide: bool) -> Tensor:
        """x (W + ΔW)ᵀ + bias of a fused layer, nothing merged: few x (rows, in) → (rows, out), in float32 if `wide`."""
        return self.few(x, self.parts[name], self.mixings, bias, torch.float32 if wide else x.dtype)

    def matrix(self, name: str) -> Tensor:
        """The matrix (out, in) that a fused layer computes with for many rows, valid until another is made."""
        self.merger.several(self.parts[name], self.merged)
        return self.whole[name]
