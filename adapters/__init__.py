"""TinyLoRA: what a few dozen scalars do to the weights of a model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.checkpoint import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
    from adapters.config import AdapterError, TinyLoRAConfig
    from adapters.tinylora import TinyLoRA, TinyLoRALinear, adapted_layers, inject

HOMES = {
    "adapters.checkpoint": ("Checkpoint", "load_checkpoint", "read_checkpoint", "save_checkpoint"),
    "adapters.config": ("AdapterError", "TinyLoRAConfig"),
    "adapters.tinylora": ("TinyLoRA", "TinyLoRALinear", "adapted_layers", "inject"),
}
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


def __getattr__(name: str) -> Any:
    """Import a module when one of its names is first asked for: `adapters.config` is read without torch."""
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'adapters' has no attribute {name!r}")
