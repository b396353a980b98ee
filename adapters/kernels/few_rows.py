"""x (W + ΔW)ᵀ of few rows from packed NF4 codes, without writing W anywhere; ΔW goes beside, in float32's precision.

For few rows, writing a matrix costs more than the product that reads it. One program computes a tile of out-features
for all rows, over a share of the in-features, as W xᵀ + (U Σ R)(Vᵀ xᵀ): it decodes W in registers, to the bits that a
16-bit copy would have, and as Vᵀ has few rows, each program multiplies it anew, so ΔW takes no kernel of its own. Vᵀ is
held as a sum of two 16-bit matrices. Shares are added in a fixed order by the program that ends last, so equal
arguments give equal bits. Pointers travel as integers, as in `merge.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

from adapters.base import NF4_BLOCK, Packed
from adapters.kernels.merge import TYPES, pointers
from adapters.kernels.nf4 import decoded, own_entry

LEAST = 16  # rows that tensor cores multiply
TILE = 64  # out-features of a program


@triton.jit
def _finish(total, y, bias, to, column, inside, column_inside, BIAS: tl.constexpr):
    if BIAS:
        total += tl.load(bias + column, mask=column_inside, other=0.0).to(tl.float32)[:, None]
    tl.store(y + to, total.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["module", "rows", "second", "third", "splits"])
def _product(
    x, y, bias, bases, absmaxes, lefts, rights, shapes, mixings, code, partials, arrivals,
    module, rows, width, out_width, second, third, splits,
    PARTS: tl.constexpr, RANK: tl.constexpr, HALVES: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
    ALIGN: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr, SHUFFLE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(1)
    part, first_tile, first_column = tl.zeros((), tl.int32), tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    if PARTS > 1:
        later = (tile >= second).to(tl.int32)
        part, first_tile, first_column = later, later * second, later * tl.load(shapes + 2 * module)
    if PARTS > 2:
        later = (tile >= third).to(tl.int32)
        part, first_tile = part + later, first_tile + later * (third - second)
        first_column += later * tl.load(shapes + 2 * module + 2)
    own = module + part
    outs = tl.load(shapes + 2 * own)
    row, n, half = (tile - first_tile) * BM + tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, HALVES)
    packed = tl.multiple_of(tl.load(bases + own).to(tl.pointer_type(tl.uint8)), ALIGN)
    absmax = tl.multiple_of(tl.load(absmaxes + own).to(tl.pointer_type(tl.float32)), ALIGN)
    right = tl.multiple_of(tl.load(rights + own).to(tl.pointer_type(DTYPE)), ALIGN)
    byte_row, block_row, x_row = row * (width // 2), row * (width // BLOCK), n.to(tl.int64) * width
    share = tl.cdiv(tl.cdiv(width, BK), splits) * BK
    start = split * share
    total = tl.zeros((BM, BN), dtype=tl.float32)
    hidden = tl.zeros((HALVES, BN), dtype=tl.float32)
    entry = own_entry(code, tl.zeros((BM, BK // 2), tl.float32)) if SHUFFLE else code
    for k in range(start, min(start + share, width), BK):
        byte_at, block_at = k // 2 + tl.arange(0, BK // 2), k // BLOCK + tl.arange(0, BK // BLOCK)
        at = k + tl.arange(0, BK)
        if EVEN:
            byte = tl.load(packed + byte_row[:, None] + byte_at[None, :])
            scales = tl.load(absmax + block_row[:, None] + block_at[None, :])
            vectors = tl.load(right + half[:, None] * width + at[None, :])
            across = tl.load(x + x_row[:, None] + at[None, :], mask=(n < rows)[:, None], other=0.0)
        else:
            byte_inside = (row < outs)[:, None] & (byte_at < width // 2)[None, :]
            block_inside = (row < outs)[:, None] & (block_at < width // BLOCK)[None, :]
            inside = (at < width)[None, :]
            byte = tl.load(packed + byte_row[:, None] + byte_at[None, :], mask=byte_inside, other=0)
            scales = tl.load(absmax + block_row[:, None] + block_at[None, :], mask=block_inside, other=0.0)
            vectors = tl.load(right + half[:, None] * width + at[None, :], mask=inside, other=0.0)
            across = tl.load(x + x_row[:, None] + at[None, :], mask=(n < rows)[:, None] & inside, other=0.0)
        weight = decoded(byte, scales, code, entry, SHUFFLE, BLOCK, DTYPE)
        total = tl.dot(weight, across.trans(), total)
        hidden = tl.dot(vectors, across.trans(), hidden)

    left = tl.load(lefts + own).to(tl.pointer_type(tl.float32))
    mixing = mixings + own * RANK * RANK
    combined = tl.zeros((BM, HALVES), dtype=tl.float32)  # U Σ R, once for each half of Vᵀ
    for j in tl.static_range(RANK):
        of_left = tl.load(left + row * RANK + j, mask=row < outs, other=0.0)
        of_mixing = tl.load(mixing + j * RANK + half % RANK, mask=half < 2 * RANK, other=0.0)
        combined += of_left[:, None] * of_mixing[None, :]
    total += tl.dot(combined, hidden, input_precision="ieee")

    column = first_column + row
    to = n.to(tl.int64)[None, :] * out_width + column[:, None]
    inside = (row < outs)[:, None] & (n < rows)[None, :]
    if SPLIT:
        tl.store(partials + split * rows * out_width + to, total, mask=inside)
        tl.debug_barrier()  # all threads have written before the program says that it has
        if tl.atomic_add(arrivals + tile, 1) == splits - 1:
            total = tl.zeros((BM, BN), dtype=tl.float32)
            for s in range(splits):
                total += tl.load(partials + s * rows * out_width + to, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(arrivals + tile, 0)
            _finish(total, y, bias, to, column, inside, row < outs, BIAS)
    else:
        _finish(total, y, bias, to, column, inside, row < outs, BIAS)


class FewRows:
    """Prepared pointers of all matrices; calling it multiplies with those of one fused layer.

    bases: packed NF4 (out, in). lefts (out, r) and rights (r, in) float32. parts: of every fused layer, up to three
    matrices that follow one another. dtype: of x, 16 bits. All on one CUDA device; the tensors are kept alive here.
    """

    KINDS = (LEAST, 64)  # rows that a compiled kernel takes at most
    MOST = KINDS[-1]  # at 128 making the matrix and multiplying with it is as fast

    def __init__(
        self, bases: list[Packed], lefts: list[Tensor], rights: list[Tensor], parts: Iterable[range], dtype: torch.dtype
    ) -> None:
        device, self.rank = lefts[0].device, lefts[0].shape[1]
        self.dtype, self.cores = dtype, 1
        if device.type == "cuda":
            self.cores = torch.cuda.get_device_properties(device).multi_processor_count
        lefts = [left.contiguous() for left in lefts]
        halves = [_halves(right, dtype) for right in rights]
        codes, absmax = [base.codes for base in bases], [base.absmax for base in bases]
        self._kept = (codes, absmax, lefts, halves)
        self.shapes = [base.shape for base in bases]
        self.tables = [
            *(pointers(tensors, device) for tensors in self._kept),
            torch.tensor(self.shapes, dtype=torch.int32, device=device),
        ]
        self.code = bases[0].state.code.to(device, torch.float32)
        layouts = [(self._layout(part, rows), part) for part in parts for rows in self.KINDS]
        most = max(layout["splits"] * self._outs(part) for layout, part in layouts)
        self.partials = torch.empty(most * self.MOST, dtype=torch.float32, device=device)
        tiles = max(sum(layout["tiles"]) for layout, _ in layouts)
        self.arrivals = torch.zeros(tiles, dtype=torch.int32, device=device)  # of programs at a tile; 0 between calls
        aligned = [tensor.data_ptr() for tensors in (codes, absmax, halves) for tensor in tensors]
        self.options = {
            "RANK": self.rank,
            "HALVES": len(halves[0]),
            "BLOCK": NF4_BLOCK,
            "DTYPE": TYPES[dtype],
            "ALIGN": math.gcd(16, *aligned),
            "SHUFFLE": device.type == "cuda",
            "BM": TILE,
            "num_warps": 4,
            "num_stages": 3,
        }

    def _outs(self, part: range) -> int:
        return sum(self.shapes[index][0] for index in part)

    def _layout(self, part: range, rows: int) -> dict[str, Any]:
        """How the work is divided: an H200's fastest for the layers of a 3B model."""
        columns, width = (LEAST, 128) if rows <= LEAST else (self.MOST, 64)
        tiles = [triton.cdiv(self.shapes[index][0], TILE) for index in part]
        inner = self.shapes[part.start][1]
        programs = self.cores * (2 if rows <= LEAST else 1)
        splits = max(1, min(round(programs / sum(tiles)), triton.cdiv(inner, width) // 2))
        even = inner % width == 0 and all(self.shapes[index][0] % TILE == 0 for index in part)
        return {"tiles": tiles, "splits": splits, "even": even, "BN": columns, "BK": width}

    def __call__(
        self, x: Tensor, part: range, mixings: Tensor, bias: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        """x (W + ΔW)ᵀ + bias (rows, out) of the matrices `part`: x (rows, in) with up to `MOST` rows, R of all
        matrices (n, r, r) float32, bias (out,)."""
        x, layout, out_width = x.contiguous(), self._layout(part, len(x)), self._outs(part)
        y = torch.empty(len(x), out_width, dtype=out_dtype, device=x.device)
        tiles, splits = layout["tiles"], layout["splits"]
        _product[(sum(tiles), splits)](
            x, y, y if bias is None else bias, *self.tables, mixings, self.code, self.partials, self.arrivals,
            part.start, len(x), x.shape[1], out_width, tiles[0], sum(tiles[:2]), splits,
            PARTS=len(part), EVEN=layout["even"], BIAS=bias is not None, SPLIT=splits > 1, BN=layout["BN"],
            BK=layout["BK"], **self.options,
        )  # fmt: skip
        return y


def _halves(right: Tensor, dtype: torch.dtype) -> Tensor:
    """Vᵀ (r, in) float32 as the rows of two matrices of 16 bits that add up to it, filled with zeros to as many rows as
    tensor cores multiply."""
    upper = right.to(dtype)
    both = torch.cat([upper, (right - upper.float()).to(dtype)])
    count = max(LEAST, triton.next_power_of_2(len(both)))
    return torch.nn.functional.pad(both, (0, 0, 0, count - len(both))).contiguous()
