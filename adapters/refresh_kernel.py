"""The refresh of all modules in one Triton launch: read the base, add the rank-r update, round, write in place.

Memory-bound: every base element is read once and every served element written once, and nothing else of that size
exists. The base is either a bf16 copy (4 bytes moved per parameter) or the trainer's own packed NF4 weights (2.5
bytes, and no copy is kept). The arithmetic is that of `adapters/merge.py` in the same order without fused
multiply-add, so both give the same bits. Left out: other dtypes than bf16, which the torch version covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

ROWS, COLUMNS = 16, 512  # elements of one program
NF4_BLOCK = 64


@triton.jit
def _merge_tiles(
    tile_module,
    first_tile,
    shapes,
    bases,
    absmaxes,
    targets,
    lefts,
    rights,
    mixings,
    salts,
    code,
    RANK: tl.constexpr,
    NF4: tl.constexpr,
    BLOCK: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    pid = tl.program_id(0)
    module = tl.load(tile_module + pid)
    local = pid - tl.load(first_tile + module)
    rows = tl.load(shapes + 2 * module)
    columns = tl.load(shapes + 2 * module + 1)
    tiles_across = tl.cdiv(columns, BC)
    row = (local // tiles_across) * BR + tl.arange(0, BR)
    column = (local % tiles_across) * BC + tl.arange(0, BC)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    position = row.to(tl.int64)[:, None] * columns + column[None, :]

    if NF4:
        packed = tl.load(bases + module).to(tl.pointer_type(tl.uint8))
        absmax = tl.load(absmaxes + module).to(tl.pointer_type(tl.float32))
        byte = tl.load(packed + position // 2, mask=inside, other=0).to(tl.int32)
        index = tl.where(position % 2 == 0, byte >> 4, byte & 15)
        scale = tl.load(absmax + position // BLOCK, mask=inside, other=0.0)
        base = (tl.load(code + index) * scale).to(tl.bfloat16).to(tl.float32)
    else:
        dense = tl.load(bases + module).to(tl.pointer_type(tl.bfloat16))
        base = tl.load(dense + position, mask=inside, other=0.0).to(tl.float32)

    left = tl.load(lefts + module).to(tl.pointer_type(tl.float32))
    right = tl.load(rights + module).to(tl.pointer_type(tl.float32))
    mixing = mixings + module * RANK * RANK
    delta = tl.zeros((BR, BC), dtype=tl.float32)
    for k in tl.static_range(RANK):
        combined = tl.load(left + row * RANK, mask=row < rows, other=0.0) * tl.load(mixing + k)
        for j in tl.static_range(1, RANK):
            part = tl.load(left + row * RANK + j, mask=row < rows, other=0.0)
            combined = combined + part * tl.load(mixing + j * RANK + k)
        across = tl.load(right + k * columns + column, mask=column < columns, other=0.0)
        delta = delta + combined[:, None] * across[None, :]

    total = base + delta
    if STOCHASTIC:
        salt = tl.load(salts + module).to(tl.uint32)
        x = position.to(tl.uint32) ^ (salt * 0x9E3779B1)
        x = (x ^ (x >> 16)) * 0x85EBCA6B
        x = (x ^ (x >> 13)) * 0xC2B2AE35
        bits = ((x ^ (x >> 16)) >> 16).to(tl.int32)
        kept = (total.to(tl.int32, bitcast=True) + bits) & -65536
        merged = kept.to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        merged = total.to(tl.bfloat16)
    merged = tl.where(delta == 0.0, base.to(tl.bfloat16), merged)
    target = tl.load(targets + module).to(tl.pointer_type(tl.bfloat16))
    tl.store(target + position, merged, mask=inside)


@dataclass(frozen=True)
class Packed:
    """A 4-bit base: `codes` uint8 (numel / 2,), `absmax` float32 (numel / 64,), as bitsandbytes lays them out."""

    codes: Tensor
    absmax: Tensor


def packed_base(codes: Tensor, state: Any) -> Packed:
    """The packed base of a bitsandbytes 4-bit weight, its doubly quantised block maxima expanded once."""
    from bitsandbytes.functional import dequantize_blockwise

    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset
    if state.blocksize != NF4_BLOCK:
        raise ValueError(f"4-bit blocks of {state.blocksize} values are not supported, only of {NF4_BLOCK}")
    return Packed(codes.reshape(-1), absmax.float())


class FusedRefresh:
    """Prepared pointers and tiles of all modules; calling it with R (modules, r, r) float32 refreshes them.

    targets: bf16 matrices (out, in) with contiguous rows, written in place. bases: bf16 tensors of the same shapes, or
    `Packed`. left (out, r), right (r, in) float32. All on one CUDA device; the tensors are kept alive here.
    """

    def __init__(
        self,
        targets: list[Tensor],
        bases: list[Tensor] | list[Packed],
        lefts: list[Tensor],
        rights: list[Tensor],
        salts: list[int],
        stochastic: bool,
        code: Tensor | None = None,
    ) -> None:
        device = targets[0].device
        self._kept = (targets, bases, lefts, rights)
        self.rank = lefts[0].shape[1]
        self.nf4 = isinstance(bases[0], Packed)
        self.stochastic = stochastic
        tiles = [triton.cdiv(t.shape[0], ROWS) * triton.cdiv(t.shape[1], COLUMNS) for t in targets]
        counts = torch.tensor(tiles)
        self.tile_module = torch.repeat_interleave(torch.arange(len(tiles), dtype=torch.int32), counts).to(device)
        self.first_tile = (counts.cumsum(0) - counts).int().to(device)
        self.shapes = torch.tensor([list(t.shape) for t in targets], dtype=torch.int32, device=device)
        self.salts = torch.tensor(salts, dtype=torch.int64, device=device)
        self.code = torch.zeros(16, device=device) if code is None else code.to(device, torch.float32)
        data = [base.codes if isinstance(base, Packed) else base for base in bases]
        absmax = [base.absmax if isinstance(base, Packed) else base for base in bases]
        self.pointers = [_pointers(tensors, device) for tensors in (data, absmax, targets, lefts, rights)]

    def __call__(self, mixings: Tensor) -> None:
        bases, absmaxes, targets, lefts, rights = self.pointers
        _merge_tiles[(len(self.tile_module),)](
            self.tile_module,
            self.first_tile,
            self.shapes,
            bases,
            absmaxes,
            targets,
            lefts,
            rights,
            mixings.contiguous(),
            self.salts,
            self.code,
            RANK=self.rank,
            NF4=self.nf4,
            BLOCK=NF4_BLOCK,
            STOCHASTIC=self.stochastic,
            BR=ROWS,
            BC=COLUMNS,
            num_warps=8,
            enable_fp_fusion=False,
        )


def _pointers(tensors: list[Tensor], device: torch.device) -> Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64, device=device)
