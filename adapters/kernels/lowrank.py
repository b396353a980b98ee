"""y + ((x Aᵀ) Rᵀ) Bᵀ in place, one pass over y: the second half of `add_lowrank` on a GPU."""

from __future__ import annotations

import itertools

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

ROWS, COLUMNS = 16, 256


@triton.jit
def _add(
    y, hidden, mixing, left, rows, width, second, third,
    PARTS: tl.constexpr, R: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0) * BR + tl.arange(0, BR), tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = y + row.to(tl.int64)[:, None] * width + column[None, :]
    total = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    part = (column >= second).to(tl.int32) + (column >= third).to(tl.int32)
    for p in tl.static_range(PARTS):
        here = (part == p) & (column < width)
        for k in tl.static_range(R):
            mixed = tl.zeros((BR,), dtype=tl.float32)
            for j in tl.static_range(R):
                of_row = tl.load(hidden + (row * PARTS + p) * R + j, mask=row < rows, other=0.0)
                mixed += of_row * tl.load(mixing + (p * R + k) * R + j)
            factor = tl.load(left + k * width + column, mask=here, other=0.0).to(tl.float32)
            total += mixed[:, None] * factor[None, :]
    tl.store(at, total.to(y.dtype.element_ty), mask=inside)


def add_mixed(y: Tensor, hidden: Tensor, mixing: Tensor, left: Tensor, sizes: list[int]) -> Tensor:
    """y (rows, out), contiguous, with (hidden Rᵀ) Bᵀ of each of up to three parts added in place.

    hidden (rows, parts · r) and mixing (parts, r, r) float32, left (r, out); `sizes` are the parts' columns.
    """
    (rows, width), (parts, rank, _) = y.shape, mixing.shape
    second, third = (list(itertools.accumulate(sizes)) + [width, width])[:2]
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, COLUMNS))
    _add[grid](
        y, hidden.contiguous(), mixing, left, rows, width, second, third, PARTS=parts, R=rank, BR=ROWS, BC=COLUMNS
    )
    return y
