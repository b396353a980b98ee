"""When what was made from `v` is stale, decided in one place for the rollout engines and the training pass.

Two things are made from `v` and kept on `TinyLoRA`: R of all layers, and the merged weights of an engine that merges
(`served`), which the training pass reads where they lie. Each holds for the value of `v` that it was made from:

- an engine drops what it served before a refresh and puts what it serves after it (`RolloutEngine.refresh`);
- every edit of `v` makes both stale. Autograd counts edits, but not the steps of fused optimizers, which
  `count_steps` therefore counts for all of them;
- a stale thing is never given out: the training pass merges its own weights then, the same bits.

The engine on the trainer's own layers keeps nothing: it always serves `v` as it is.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class MadeFrom(Generic[T]):
    """Something made from a vector, there until that vector is edited."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[int, int], T] | None = None

    def put(self, v: Tensor, made: T) -> T:
        """Keep what was made from `v` as it is now; returns it."""
        self._kept = _edition(v), made
        return made

    def at(self, v: Tensor) -> T | None:
        """What was made from `v`, None where it was edited since, or where nothing was made from this vector."""
        return self._kept[1] if self._kept is not None and self._kept[0] == _edition(v) else None

    def drop(self) -> None:
        self._kept = None


def count_steps(optimizer: torch.optim.Optimizer, v: Tensor) -> None:
    """From now on every step of `optimizer` counts as an edit of `v`."""
    optimizer.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(v))


def _edition(v: Tensor) -> tuple[int, int]:
    """Changes with every counted edit; equal for a parameter and its detached alias."""
    return v.data_ptr(), v._version
