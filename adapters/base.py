"""The frozen matrix under an adapter: dense, or packed as bitsandbytes' NF4."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from adapters.config import AdapterError

NF4_BLOCK = 64  # values that share a scale
SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def is_quantized(linear: nn.Module) -> bool:
    return getattr(getattr(linear, "weight", None), "quant_state", None) is not None


class Packed:
    """A 4-bit weight as bitsandbytes lays it out: `codes` uint8, two to a byte, and the state that dequantises them."""

    def __init__(self, codes: Tensor, state: Any) -> None:
        self.codes, self.state = codes, state
        self.shape: tuple[int, int] = tuple(state.shape)
        self.dtype: torch.dtype = state.dtype

    def dense(self) -> Tensor:
        """The matrix (out, in) that a 4-bit layer computes with, in its compute dtype."""
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.codes, self.state).reshape(self.shape)

    @cached_property
    def absmax(self) -> Tensor:
        """Largest absolute value of every block, float32 (numel / 64,): double quantisation expanded once."""
        from bitsandbytes.functional import dequantize_blockwise

        if self.state.blocksize != NF4_BLOCK or self.shape[1] % NF4_BLOCK:
            raise AdapterError(f"a 4-bit weight {self.shape} in blocks of {self.state.blocksize} cannot be merged")
        absmax = self.state.absmax
        if self.state.nested:
            absmax = dequantize_blockwise(absmax, self.state.state2) + self.state.offset
        return absmax.float()


Base: TypeAlias = Tensor | Packed


def frozen_base(linear: nn.Module) -> Base:
    """A layer's own frozen weight, not a copy."""
    weight = linear.weight
    return Packed(weight.data, weight.quant_state) if is_quantized(linear) else weight.detach()


def dense(base: Base) -> Tensor:
    """The matrix (out, in) that the layer computes with, in its compute dtype."""
    return base.dense() if isinstance(base, Packed) else base


def dense_weight(linear: nn.Module) -> Tensor:
    return dense(frozen_base(linear))


def wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def float32_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b in float32, also of 16-bit factors, for what must not be rounded to them: logits, and what the residual
    stream takes in. Float64 stays what it is. x (..., in), weight (out, in) → (..., out)."""
    if x.is_cuda and x.dtype in SIXTEEN_BITS:
        y = torch.mm(x.reshape(-1, x.shape[-1]), weight.mT, out_dtype=torch.float32).view(*x.shape[:-1], len(weight))
    else:
        y = wide(x) @ wide(weight).mT
    return y if bias is None else y + bias
