"""SwiGLU, rounded once, in the engine and in the training pass (`adapters/merged.py`; Shazeer, "GLU Variants Improve
Transformer", arXiv 2002.05202). One pass in long pieces, computed in float32."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

COLUMNS = 2048  # of a program
PIECE = 4096  # elements of a program where rows do not matter


@triton.jit
def _silu_times(gate, up):
    return gate / (1 + tl.exp(-gate)) * up


@triton.jit
def _side_by_side(x, y, width, COLUMNS: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    gate = tl.load(x + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + column, _silu_times(gate, up).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _apart(gate, up, y, kept_gate, kept_up, count, KEEP: tl.constexpr, PIECE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * PIECE + tl.arange(0, PIECE)
    inside = at < count
    of_gate, of_up = tl.load(gate + at, mask=inside, other=0.0), tl.load(up + at, mask=inside, other=0.0)
    tl.store(y + at, _silu_times(of_gate, of_up).to(y.dtype.element_ty), mask=inside)
    if KEEP:
        tl.store(kept_gate + at, of_gate.to(y.dtype.element_ty), mask=inside)
        tl.store(kept_up + at, of_up.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient(grad, gate, up, to_gate, to_up, count, PIECE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * PIECE + tl.arange(0, PIECE)
    inside = at < count
    to_y = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    of_gate = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    of_up = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1 / (1 + tl.exp(-of_gate))
    of_silu = sigmoid * (1 + of_gate * (1 - sigmoid))
    tl.store(to_gate + at, (to_y * of_up * of_silu).to(to_gate.dtype.element_ty), mask=inside)
    tl.store(to_up + at, (to_y * of_gate * sigmoid).to(to_up.dtype.element_ty), mask=inside)


def swiglu(x: Tensor) -> Tensor:
    """(rows, n) of x (rows, 2 n), gate beside up, both 16 bits or both float32."""
    x = x.contiguous()
    rows, width = x.shape[0], x.shape[1] // 2
    y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    _side_by_side[(rows, triton.cdiv(width, COLUMNS))](x, y, width, COLUMNS=COLUMNS, num_warps=8)
    return y


def swiglu_of_products(products: list[Tensor], dtype: torch.dtype, kept: list[Tensor] | None) -> Tensor:
    """As `_swiglu` of `merged.py`."""
    gate, up = products
    y = torch.empty_like(gate, dtype=dtype)
    count = gate.numel()
    _apart[(triton.cdiv(count, PIECE),)](gate, up, y, *(kept or (y, y)), count, KEEP=kept is not None, PIECE=PIECE)
    return y


def swiglu_gradient(grad: Tensor, products: list[Tensor]) -> list[Tensor]:
    """As `_swiglu_gradient` of `merged.py`."""
    out = [torch.empty_like(product) for product in products]
    count = grad.numel()
    _gradient[(triton.cdiv(count, PIECE),)](grad.contiguous(), *products, *out, count, PIECE=PIECE)
    return out
