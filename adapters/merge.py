"""From scalars to weights: R = Σ v_i P_i, ΔW = U Σ R Vᵀ, and W' = round(W + ΔW).

Pure functions of tensors. A merged weight is always computed from the frozen base, never from an earlier merge, so
there is no drift and v = 0 gives the base back bit for bit. Rounding to nearest drops what is below half a step of each
element, which in bf16 is most of a small ΔW, and in float16, whose steps are an eighth as large, less of it; stochastic
rounding keeps it in expectation. Its random bits are a fixed hash of the element's position, so a merge is a function
of its arguments alone.

`Merger` is the one place that merges: the engine's weights and the trainer's forward pass come from it, so both hold
the same bits. On a GPU it is one Triton launch for all matrices (`kernels/merge.py`), elsewhere the functions
here, which are the kernel's reference.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor

from adapters.base import Base, dense
from adapters.config import AdapterError

GOLDEN, MASK = 0x9E3779B1, 0xFFFFFFFF
Rounding = Literal["nearest", "stochastic"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "stochastic")
DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}  # of a float32's mantissa, which the format has not


def projection(u: int, rank: int, seed: int, name: str) -> Tensor:
    """P of one module: (u, r, r) float32, normal with standard deviation 1/√r, fixed by (seed, module name)."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(u, rank, rank, generator=generator) / rank**0.5


def mixing(v: Tensor, projections: Tensor) -> Tensor:
    """R = Σ v_i P_i: v (..., u), projections (..., u, r, r) → (..., r, r) float32.

    Multiply and add rather than matmul: autocast would turn a matmul into bf16.
    """
    return (v[..., None, None] * projections).sum(dim=-3)


def delta_weight(left: Tensor, r: Tensor, right: Tensor) -> Tensor:
    """ΔW = (U Σ) R Vᵀ: left (out, r), r (r, r), right (r, in) → (out, in) float32.

    Elementwise in a fixed order, one rank after the other, so that the GPU kernel can give the same bits.
    """
    left, r, right = left.float(), r.float(), right.float()
    rank = left.shape[1]
    terms = []
    for k in range(rank):
        column = left[:, 0] * r[0, k]
        for j in range(1, rank):
            column = column + left[:, j] * r[j, k]
        terms.append((column.unsqueeze(1), right[k].unsqueeze(0)))
    total = terms[0][0] * terms[0][1]
    for column, row in terms[1:]:
        total += column * row
    return total


def salt_of(name: str) -> int:
    """31-bit salt of a module's rounding bits."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little") >> 1


def _mix(x: Tensor) -> Tensor:
    """The murmur3 finaliser of 32-bit integers, held as int64."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def rounding_bits(rows: int, columns: int, salt: int, device: torch.device | str = "cpu") -> Tensor:
    """Fixed pseudo-random 16-bit integers (rows, columns) as int32: a hash of (row, column, salt).

    Rows and pairs of columns are hashed apart, so that an element costs one multiplication. 32 bits serve two
    neighbours of a row: the lower half the even column, the upper half the odd one. Written in 64-bit arithmetic with
    masks because torch has no unsigned 32-bit multiply.
    """
    pairs, salted = (columns + 1) // 2, (salt * GOLDEN) & MASK
    row = _mix(torch.arange(rows, device=device) ^ salted)
    column = _mix((torch.arange(pairs, device=device) + salted) & MASK)
    x = ((row.unsqueeze(1) ^ column) * GOLDEN) & MASK
    x = x ^ (x >> 16)
    return torch.stack([x & 0xFFFF, x >> 16], dim=-1).to(torch.int32).view(rows, 2 * pairs)[:, :columns]


def round_to(values: Tensor, dtype: torch.dtype, rounding: Rounding, salt: int) -> Tensor:
    """float32 values (rows, columns) rounded to `dtype`. Stochastic rounding to bf16 or float16 adds as many random
    bits as the format drops, then truncates. What float16 has no normal number for, below 6.1e-5, is then rounded to
    nearest.

    A value already on the format's grid is returned unchanged by both roundings.
    """
    if dtype == torch.float32 or rounding == "nearest":
        return values.to(dtype)
    dropped = DROPPED_BITS.get(dtype)
    if dropped is None:
        raise AdapterError(f"stochastic rounding is for bfloat16 and float16 weights, not {dtype}; use nearest")
    rows, columns = values.shape
    random = rounding_bits(rows, columns, salt, values.device) >> (16 - dropped)
    bits = values.contiguous().view(torch.int32) + random
    return bits.bitwise_and(-(1 << dropped)).view(torch.float32).to(dtype)


def merge_weight(base: Tensor, delta: Tensor, rounding: Rounding, salt: int) -> Tensor:
    """round(W + ΔW) in the base's dtype; base (out, in), delta (out, in) float32. The sum is formed in float32.

    The base is returned bit for bit where ΔW is zero, also where it holds the sign of a zero.
    """
    total = base.float() + delta
    return torch.where(delta == 0, base, round_to(total, base.dtype, rounding, salt))


def kept_share(base: Tensor, merged: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator ⟨W' − W, ΔW⟩ and denominator ⟨ΔW, ΔW⟩ of the share of ΔW that survives a merge, float64 scalars.

    Returned apart so that shares of several modules add up before dividing.
    """
    moved = merged.float() - base.float()
    return (moved * delta).sum(dtype=torch.float64), delta.square().sum(dtype=torch.float64)


class Merger:
    """W' = round(W + ΔW) of many matrices, from their frozen bases into given targets.

    bases: frozen matrices (out, in), dense or packed. lefts (out, r) and rights (r, in) float32. targets: tensors of
    the same shapes in the served dtype with contiguous rows, written in place; those that are not written
    together may share storage. All on one device."""

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
        if targets[0].is_cuda and targets[0].dtype in DROPPED_BITS:
            from adapters.kernels.merge import FusedRefresh

            self._fused = FusedRefresh(targets, bases, lefts, rights, salts, rounding == "stochastic")

    def every(self, mixings: Tensor) -> None:
        """Write every target. mixings: R (n, r, r) float32."""
        self.several(range(len(self.targets)), mixings)

    @torch.no_grad()
    def several(self, indices: range, mixings: Tensor) -> None:
        """Write the targets `indices`, which follow one another."""
        if self._fused is not None:
            self._fused(mixings, indices)
            return
        for index in indices:
            delta = delta_weight(self.lefts[index], mixings[index], self.rights[index])
            merged = merge_weight(dense(self.bases[index]), delta, self.rounding, self.salts[index])
            self.targets[index].copy_(merged)

    def one(self, index: int, mixings: Tensor) -> Tensor:
        """Write target `index` and return it."""
        self.several(range(index, index + 1), mixings)
        return self.targets[index]
