"""SwiGLU of the engine: silu(gate) · up, silu rounded to 16 bits before the product, as vLLM's kernel and the trainer's
round it, but read in longer pieces (Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202)."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

COLUMNS = 2048  # of a program


@triton.jit
def _product(x, y, width, COLUMNS: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    gate = tl.load(x + row * 2 * width + column, mask=inside, other=0.0)
    up = tl.load(x + row * 2 * width + width + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1 + tl.exp(-wide))).to(gate.dtype)
    tl.store(y + row * width + column, (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype), mask=inside)


def swiglu(x: Tensor) -> Tensor:
    """(rows, n) of x (rows, 2 n), gate beside up, both 16 bits or both float32."""
    x = x.contiguous()
    rows, width = x.shape[0], x.shape[1] // 2
    y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    _product[(rows, triton.cdiv(width, COLUMNS))](x, y, width, COLUMNS=COLUMNS, num_warps=8)
    return y
