"""The residual stream in float32, in the trainer's forward pass and in vLLM's.

In bf16 every block's output is added to a stream that is then rounded as a whole, twice a layer. No other rounding
makes as much of the distance between a bf16 policy and the exact one, and as trainer and engine round differently, of
their mismatch (`bench.py causes`). Here the sum stays in float32, and the norm that reads it rounds once, to what the
next projection takes. Addition and norm are one kernel, as in vLLM. What the stream takes in are sums of products in
float32 too, as tensor cores make them. Only on a GPU: on a CPU all is float32.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def add_norm(
    x: Tensor | None, residual: Tensor, weight: Tensor, eps: float, in_place: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """RMS norm of a residual stream that has taken in `x`: s = residual + x, y = weight · s / √(mean s² + eps).

    x a block's output (..., H), or parts that add up to it (parts, ..., H), or None; residual (..., H) of any dtype,
    written over with s if `in_place` and float32.
    Returns y in the dtype of `weight`, s in float32, and the inverse root (..., 1) in float32. Zhang and Sennrich,
    "Root Mean Square Layer Normalization", 2019.
    """
    if residual.is_cuda:
        from adapters.kernels.residual import add_norm_forward

        return add_norm_forward(x, residual, weight, eps, in_place)
    total = residual.float()
    for part in () if x is None else x.reshape(-1, *residual.shape):
        total = total + part.float()
    inverse = torch.rsqrt(total.square().mean(dim=-1, keepdim=True) + eps)
    return (total * inverse * weight.float()).to(weight.dtype), total, inverse


def add_norm_gradient(to_y: Tensor, to_total: Tensor, total: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """∂L/∂s (..., H) float32 from ∂L/∂y and what else comes back to s.

    With n = s / √(mean s² + eps) and g = weight · ∂L/∂y: (g − n · mean(g n)) / √(mean s² + eps) + ∂L/∂s of the rest.
    """
    if total.is_cuda:
        from adapters.kernels.residual import add_norm_backward

        return add_norm_backward(to_y, to_total, total, weight, inverse)
    scaled, normed = to_y.float() * weight.float(), total * inverse
    return inverse * (scaled - normed * (scaled * normed).mean(dim=-1, keepdim=True)) + to_total


class AddNorm(torch.autograd.Function):
    """(y, s) of `add_norm`, with the gradients of x and of the residual; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.dtypes = None if x is None else x.dtype, residual.dtype
        y, total, inverse = add_norm(x, residual, weight, eps)
        ctx.save_for_backward(total, weight, inverse)
        return y, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:  # pyright: ignore
        of_x, of_residual = ctx.dtypes
        grad = add_norm_gradient(*grads, *ctx.saved_tensors)
        return None if of_x is None else grad.to(of_x), grad.to(of_residual), None, None


def keep_residual(model: nn.Module) -> None:
    """Let the layers of a model that transformers or Unsloth made add up their outputs in float32.

    Passes with a key-value cache keep the layers' own way. Layers of any other making are left as they are.
    """
    for layer in model.model.layers:  # type: ignore[union-attr]
        made_by = type(layer).forward.__module__
        if made_by.startswith(("transformers.models.", "unsloth.models.")):
            layer.forward = MethodType(_unsloth_forward if made_by.startswith("unsloth") else _forward, layer)


def _forward(layer: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
    """Of a decoder layer: hidden_states (..., H) → the same after the layer, in float32."""
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        projection.wide_output = not options.get("use_cache")  # read by adapted ones
    if options.get("use_cache"):
        return type(layer).forward(layer, hidden_states, *arguments, **options)
    norm = layer.input_layernorm
    y, total = AddNorm.apply(None, hidden_states, norm.weight, norm.variance_epsilon)
    output = layer.self_attn(y, *arguments, **options)[0]
    norm = layer.post_attention_layernorm
    y, total = AddNorm.apply(output, total, norm.weight, norm.variance_epsilon)
    return total + layer.mlp(y)


def _unsloth_forward(layer: Any, *arguments: Any, **options: Any) -> Any:
    """The same, in the tuple that Unsloth's loop over layers expects."""
    output = _forward(layer, *arguments, **options)
    return output if isinstance(output, tuple) else (output,)


def register_vllm_norm() -> None:
    """Make vLLM build its norms so that the residual stream between them is float32; safe to call again."""
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.layernorm import RMSNorm

    if RMSNorm.__name__ in op_registry_oot:
        return

    @RMSNorm.register_oot(name=RMSNorm.__name__)
    class Float32ResidualNorm(RMSNorm):
        def forward_native(self, x: Tensor, residual: Tensor | None = None) -> Any:
            if residual is None:
                return super().forward_native(x)
            y, total, _ = add_norm(x, residual, self.weight.data, self.variance_epsilon, in_place=True)
            return y, total

        forward_cuda = forward_native
