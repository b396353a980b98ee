"""The kernels of `residual.py`: residual + x and its RMS norm in one pass, and their gradient in another.

One program a row, which it holds in registers.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor


@triton.jit
def _forward(
    x, residual, weight, y, total, inverse, width, eps, PARTS: tl.constexpr, STORE: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = tl.program_id(0).to(tl.int64) * width + column
    value = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(PARTS):
        of_part = x + part * tl.num_programs(0).to(tl.int64) * width
        value += tl.load(of_part + at, mask=inside, other=0.0).to(tl.float32)
    if STORE:
        tl.store(total + at, value, mask=inside)
    root = tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, (value * root * factor).to(y.dtype.element_ty), mask=inside)
    tl.store(inverse + tl.program_id(0), root)


@triton.jit
def _backward(to_y, to_total, total, weight, inverse, out, width, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = tl.program_id(0).to(tl.int64) * width + column
    root = tl.load(inverse + tl.program_id(0))
    normed = tl.load(total + at, mask=inside, other=0.0) * root
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.load(to_y + at, mask=inside, other=0.0).to(tl.float32) * factor
    mean = tl.sum(scaled * normed, axis=0) / width
    rest = tl.load(to_total + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, root * (scaled - normed * mean) + rest, mask=inside)


def add_norm_forward(
    x: Tensor | None, residual: Tensor, weight: Tensor, eps: float, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `add_norm`."""
    residual = residual.contiguous()
    width = residual.shape[-1]
    is_float = residual.dtype == torch.float32
    store = x is not None or not is_float
    keep = is_float and (in_place or not store)
    total = residual if keep else torch.empty_like(residual, dtype=torch.float32)
    y = torch.empty_like(residual, dtype=weight.dtype)
    inverse = torch.empty(*residual.shape[:-1], 1, dtype=torch.float32, device=residual.device)
    added = residual if x is None else x.contiguous()
    parts = added.numel() // residual.numel() if x is not None else 0
    options = {"PARTS": parts, "STORE": store, **_layout(width)}
    _forward[(inverse.numel(),)](added, residual, weight, y, total, inverse, width, eps, **options)
    return y, total, inverse


def add_norm_backward(to_y: Tensor, to_total: Tensor, total: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """As `add_norm_gradient`."""
    out = torch.empty_like(total)
    width = total.shape[-1]
    _backward[(inverse.numel(),)](
        to_y.contiguous(), to_total.contiguous(), total, weight, inverse, out, width, **_layout(width)
    )
    return out


def _layout(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}
