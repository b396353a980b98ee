"""The training pass of layers that compute with merged weights, the very weights that a merging engine serves.

y = x W'ᵀ + b with W' = round(W + ΔW), and the gradients of x and of v. W' is asked for anew in the backward pass, so
nothing of its size is kept. With g = ∂L/∂y: ∂L/∂x = g W', and since W' moves with R as ΔW does (rounding is passed
straight through), ∂L/∂R = (g U Σ)ᵀ (x V), ∂L/∂v_i = ⟨P_i, ∂L/∂R⟩. Of copies of `v` (rows, groups, u) all values are
equal, and each gets its tokens' part of the sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.base import SIXTEEN_BITS, float32_product, wide

if TYPE_CHECKING:
    from adapters.tinylora import TinyLoRALinear

MOST_ROWS = 64  # of A that the kernels of `kernels/skinny.py` take


class MergedLinear(torch.autograd.Function):
    """x (..., in) → x W'ᵀ + b (..., out) of a layer; float32 where its output stays so. hidden: x V, None without a
    gradient. v: the layer's, or copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, hidden: Tensor | None, layer: TinyLoRALinear) -> Tensor:
        ctx.layer, ctx.groups, ctx.owners, ctx.dtype = layer, v.shape, layer.owners, x.dtype
        ctx.save_for_backward(hidden)
        bias = layer.base_layer.bias
        factors = x.to(layer.dtype), layer.merged_weight(), None if bias is None else bias.to(layer.dtype)
        return float32_product(*factors) if layer.wide_output else F.linear(*factors).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # pyright: ignore
        layer: TinyLoRALinear = ctx.layer
        (hidden,) = ctx.saved_tensors
        grad = grads[0].to(layer.dtype)
        flat = grad.reshape(-1, layer.out_features)
        to_x = to_v = None
        if ctx.needs_input_grad[0]:
            to_x = (flat @ layer.merged_weight()).view(*grad.shape[:-1], -1).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            to_v = _gradient_of_v(layer, flat, hidden, ctx.groups, ctx.owners)
        return to_x, to_v, None, None


class MergedGate(torch.autograd.Function):
    """x (..., in) → silu(x W'_gateᵀ) · (x W'_upᵀ) (..., out), rounded once, to the layers' dtype: Shazeer, "GLU
    Variants Improve Transformer", arXiv 2002.05202. What the gradient needs of the two products is kept in that dtype.
    The other arguments are those of `MergedLinear`, of both layers, which have no bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        v: Tensor,
        of_gate: Tensor | None,
        of_up: Tensor | None,
        gate: TinyLoRALinear,
        up: TinyLoRALinear,
    ) -> Tensor:
        ctx.layers, ctx.groups, ctx.owners, ctx.dtype = (gate, up), v.shape, gate.owners, x.dtype
        flat = x.reshape(-1, gate.in_features).to(gate.dtype)
        products = [float32_product(flat, layer.merged_weight()) for layer in (gate, up)]
        kept = None if of_gate is None else [torch.empty_like(part, dtype=gate.dtype) for part in products]
        y = _swiglu(products, gate.dtype, kept)
        ctx.save_for_backward(of_gate, of_up, *(kept or ()))
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        of_gate, of_up, *kept = ctx.saved_tensors
        to_products = _swiglu_gradient(grads[0].reshape(kept[0].shape), kept)
        to_x = to_v = None
        for layer, grad, hidden in zip(ctx.layers, to_products, (of_gate, of_up), strict=True):
            if ctx.needs_input_grad[0]:
                weight = layer.merged_weight()
                to_x = grad @ weight if to_x is None else to_x.addmm_(grad, weight)
            if ctx.needs_input_grad[1]:
                part = _gradient_of_v(layer, grad, hidden, ctx.groups, ctx.owners)
                to_v = part if to_v is None else to_v + part
        if to_x is not None:
            to_x = to_x.view(*grads[0].shape[:-1], -1).to(ctx.dtype)
        return to_x, to_v, None, None, None, None


def _gradient_of_v(
    layer: TinyLoRALinear, grad: Tensor, hidden: Tensor, shape: torch.Size, owners: Tensor | None
) -> Tensor:
    """∂L/∂v, of `shape`, from ∂L/∂y (tokens, out) and x V (tokens, r) of a layer."""
    if len(shape) == 3:
        by_token = onto(grad, layer.left_rows).unsqueeze(-1) * hidden.unsqueeze(-2)  # type: ignore[arg-type]
        to_mixing = by_token.new_zeros(shape[0], by_token[0].numel())  # (rows, r · r)
        to_mixing.index_add_(0, owners, by_token.flatten(1))  # type: ignore[arg-type]
    else:
        to_mixing = outer(grad, layer.left_rows, hidden).flatten()  # type: ignore[arg-type]
    projections: Any = layer.projections
    to_scalars = (to_mixing @ projections.flatten(1).mT.to(to_mixing.dtype)).unsqueeze(-2)  # (..., 1, u)
    if shape[-2] == 1:
        return to_scalars
    zeros = to_scalars.new_zeros(shape)
    return zeros.index_copy_(zeros.dim() - 2, layer.group_index, to_scalars)  # type: ignore[arg-type]


def _swiglu(products: list[Tensor], dtype: torch.dtype, kept: list[Tensor] | None) -> Tensor:
    """silu(gate) · up (tokens, out) in `dtype` of the two products (tokens, out) in float32, and these in `kept`."""
    if products[0].is_cuda:
        from adapters.kernels.swiglu import swiglu_of_products

        return swiglu_of_products(products, dtype, kept)
    gate, up = products
    for product, rounded in zip(products, kept or (), strict=False):
        rounded.copy_(product)
    return (F.silu(gate) * up).to(dtype)


def _swiglu_gradient(grad: Tensor, products: list[Tensor]) -> list[Tensor]:
    """∂L/∂gate = ∂L/∂y · up · s (1 + gate (1 − s)), ∂L/∂up = ∂L/∂y · gate · s, s = σ(gate); all (tokens, out)."""
    if grad.is_cuda:
        from adapters.kernels.swiglu import swiglu_gradient

        return swiglu_gradient(grad, products)
    gate, up, to_y = wide(products[0]), wide(products[1]), wide(grad)
    sigmoid = torch.sigmoid(gate)
    to_gate, to_up = to_y * up * sigmoid * (1 + gate * (1 - sigmoid)), to_y * gate * sigmoid
    return [to_gate.to(grad.dtype), to_up.to(grad.dtype)]


def onto(x: Tensor, rows: Tensor) -> Tensor:
    """x rowsᵀ in float32: x (n, width), rows (few, width)."""
    if is_skinny(x, rows):
        from adapters.kernels.skinny import skinny_product

        return skinny_product(x, rows)
    return wide(F.linear(x, rows))


def outer(x: Tensor, rows: Tensor, factors: Tensor) -> Tensor:
    """(x rowsᵀ)ᵀ factors (few, m) in float32: x (n, width), rows (few, width), factors (n, m) float32."""
    if is_skinny(x, rows):
        from adapters.kernels.skinny import skinny_outer

        return skinny_outer(x, rows, factors)
    return wide(F.linear(x, rows)).mT @ factors


def is_skinny(x: Tensor, rows: Tensor) -> bool:
    """Whether the kernels of `kernels/skinny.py` can multiply the two."""
    return x.is_cuda and x.dtype in SIXTEEN_BITS and len(rows) <= MOST_ROWS
