"""SwiGLU in the trainer's forward pass, of two products in float32, rounded once.

Each rounding of gate, up and silu to bf16 adds to the distance from the exact policy, and so to the mismatch of engine
and trainer. The trainer's projections make float32 for nothing, as tensor cores do; in the engine, writing it would
slow a step of many sequences, so there only silu stays whole (`adapters/kernels/swiglu.py`). Only on a GPU: on a CPU
all is float32.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn

from adapters.base import SIXTEEN_BITS
from adapters.tinylora import TinyLoRALinear, gated


def keep_swiglu(model: nn.Module) -> None:
    """Let the feed-forward blocks of a model that transformers or Unsloth made compute so, where their projections are
    adapted and compute with merged weights. Blocks with another activation or biases are left as they are."""
    for layer in model.model.layers:  # type: ignore[union-attr]
        block = layer.mlp
        adapted = all(isinstance(part, TinyLoRALinear) for part in (block.gate_proj, block.up_proj))
        if adapted and model.config.hidden_act == "silu" and block.gate_proj.base_layer.bias is None:  # type: ignore[union-attr]
            block.forward = MethodType(_forward, block)


def _forward(block: Any, x: Tensor) -> Tensor:
    y = gated(block.gate_proj, block.up_proj, x) if x.is_cuda and x.dtype in SIXTEEN_BITS else None
    return type(block).forward(block, x) if y is None else block.down_proj(y)
