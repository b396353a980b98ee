"""W' = round(W + ΔW) of many matrices, from their frozen bases into given targets.

The one place that merges: the engine's weights and the trainer's forward pass come from here, so both hold the same
bits. On a GPU in bf16 it is one Triton launch for all matrices (`kernels/merge.py`), elsewhere the torch functions of
`merge.py`, which are the kernel's reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base import Base, dense
from adapters.merge import Rounding, delta_weight, merge_weight


class Merger:
    """bases: frozen matrices (out, in), dense or packed. lefts (out, r) and rights (r, in) float32. targets: tensors of
    the same shapes in the served dtype with contiguous rows, written in place; they may share storage if only `one` is
    used. All on one device."""

    def __init__(
        self,
        bases: list[Base],
        lefts: list[Tensor],
        rights: list[Tensor],
        salts: list[int],
        rounding: Rounding,
        targets: list[Tensor],
    ) -> None:
        self.bases, self.lefts, self.rights = bases, lefts, rights
        self.salts, self.rounding, self.targets = salts, rounding, targets
        self._fused = None
        if targets[0].is_cuda and targets[0].dtype == torch.bfloat16:
            from adapters.kernels.merge import FusedRefresh

            self._fused = FusedRefresh(targets, bases, lefts, rights, salts, rounding == "stochastic")

    @torch.no_grad()
    def every(self, mixings: Tensor) -> None:
        """Write every target. mixings: R (n, r, r) float32."""
        if self._fused is not None:
            self._fused(mixings)
            return
        for index in range(len(self.targets)):
            self.one(index, mixings)

    @torch.no_grad()
    def one(self, index: int, mixings: Tensor) -> Tensor:
        """Write target `index` and return it."""
        target = self.targets[index]
        if self._fused is not None:
            self._fused(mixings, index)
            return target
        delta = delta_weight(self.lefts[index], mixings[index], self.rights[index])
        return target.copy_(merge_weight(dense(self.bases[index]), delta, self.rounding, self.salts[index]))
