"""Which of vLLM's fused layers serves a matrix of the checkpoint."""

from __future__ import annotations

FUSED = {  # module: (vLLM's fused module, position among its parts)
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


def fused_place(name: str) -> tuple[str, int]:
    """vLLM's name of the layer that serves the matrix `name`, and the position among its parts."""
    parent, _, child = name.rpartition(".")
    fused, position = FUSED.get(child, (child, 0))
    return f"{parent}.{fused}", position
