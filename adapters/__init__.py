"""TinyLoRA: what a few dozen scalars do to the weights of a model."""

from adapters.checkpoint import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from adapters.config import AdapterError, TinyLoRAConfig
from adapters.tinylora import TinyLoRA, TinyLoRALinear, adapted_layers, inject

__all__ = [
    "AdapterError",
    "Checkpoint",
    "TinyLoRA",
    "TinyLoRAConfig",
    "TinyLoRALinear",
    "adapted_layers",
    "inject",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
]
