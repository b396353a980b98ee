"""x Aᵀ for an A of a few rows, as fast as x can be read: the training pass does it twice for every adapted layer.

A matrix product of the libraries is laid out for wide results and reads x several times slower. Tensor cores need 16
columns, so A is padded with zeros; the sum is float32. Left out: other dtypes than bf16, and more than 64 rows of A.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

ROWS, WIDTH = 32, 256
LEAST, MOST = 16, 64


@triton.jit
def _skinny(x, a, out, rows, width, n, N: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):
    row = tl.program_id(0) * BR + tl.arange(0, BR)
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
    tl.store(out + row[:, None] * n + column[None, :], total, mask=(row < rows)[:, None] & (column < n)[None, :])


def skinny_product(x: Tensor, a: Tensor) -> Tensor:
    """x (rows, width) and a (n, width), both bf16 with contiguous rows, n at most `MOST` → (rows, n) float32."""
    x, a = x.contiguous(), a.contiguous()
    (rows, width), n = x.shape, len(a)
    out = torch.empty(rows, n, dtype=torch.float32, device=x.device)
    padded = max(LEAST, triton.next_power_of_2(n))
    grid = (triton.cdiv(rows, ROWS),)
    _skinny[grid](x, a, out, rows, width, n, N=padded, BR=ROWS, BK=WIDTH, num_warps=4, num_stages=4)
    return out
