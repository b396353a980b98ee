"""x Aᵀ for an A of a few rows, as fast as x can be read: the training pass does it twice for every adapted layer.

A matrix product of the libraries is laid out for wide results and reads x several times slower. Tensor cores need 16
columns, so A is padded with zeros; the sum is float32. Left out: other dtypes than bf16 and float16, and more rows of
A than `MOST_ROWS` of `adapters/merged.py`.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

ROWS, WIDTH = 32, 256
LEAST = 16


@triton.jit
def _tile(x, a, row, rows, width, n, N: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):
    """x Aᵀ of the rows `row`, (BR, N) float32."""
    column = tl.arange(0, N)
    total = tl.zeros((BR, N), dtype=tl.float32)
    start = row.to(tl.int64)[:, None] * width
    for k in range(0, width, BK):
        inner = k + tl.arange(0, BK)
        inside = inner < width
        left = tl.load(x + start + inner[None, :], mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        part = (column < n)[None, :] & inside[:, None]
        right = tl.load(a + column[None, :] * width + inner[:, None], mask=part, other=0.0)
        total = tl.dot(left, right, total)
    return total


@triton.jit
def _product(x, a, out, rows, width, n, N: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):
    row, column = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, N)
    total = _tile(x, a, row, rows, width, n, N, BR, BK)
    tl.store(out + row[:, None] * n + column[None, :], total, mask=(row < rows)[:, None] & (column < n)[None, :])


@triton.jit
def _outer(
    x, a, b, out, rows, width, n, b_stride, N: tl.constexpr, M: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr
):
    row, column = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, N)
    total = _tile(x, a, row, rows, width, n, N, BR, BK)
    for m in tl.static_range(M):
        factor = tl.load(b + row * b_stride + m, mask=row < rows, other=0.0)
        to = out + (column * M + m) * tl.num_programs(0) + tl.program_id(0)
        tl.store(to, tl.sum(total * factor[:, None], axis=0), mask=column < n)


def skinny_product(x: Tensor, a: Tensor) -> Tensor:
    """x Aᵀ (rows, n) float32 of x (rows, width) and A (n, width), both bf16 or both float16."""
    (rows, width), n = x.shape, len(a)
    out = torch.empty(rows, n, dtype=torch.float32, device=x.device)
    _product[(triton.cdiv(rows, ROWS),)](x.contiguous(), a.contiguous(), out, rows, width, n, **_layout(n))
    return out


def skinny_outer(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(x Aᵀ)ᵀ B (n, m) float32 of x (rows, width) and A (n, width), both bf16 or both float16, and B (rows, m)
    float32 with adjacent columns. Sums in a fixed order, so equal arguments give equal bits."""
    (rows, width), (n, _), m = x.shape, a.shape, b.shape[1]
    programs = triton.cdiv(rows, ROWS)
    out = torch.empty(n, m, programs, dtype=torch.float32, device=x.device)  # every program's share
    x, a = x.contiguous(), a.contiguous()
    _outer[(programs,)](x, a, b, out, rows, width, n, b.stride(0), M=m, **_layout(n))
    return out.sum(-1)


def _layout(n: int) -> dict[str, int]:
    padded = max(LEAST, triton.next_power_of_2(n))
    return {"N": padded, "BR": ROWS, "BK": WIDTH, "num_warps": 4, "num_stages": 4}
