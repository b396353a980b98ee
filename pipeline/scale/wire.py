"""What crosses between the driver and its replicas: work, completions, `v` with its hash, a share and its gradient.

Numbers travel as arrays, not as lists: a completion of 200 tokens is 1.6 kB and unpacked in microseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.rollout import Completion
from rewards.problem import Problem
from rewards.verdict import Verdict


@dataclass(frozen=True)
class Job:
    """A group to be drawn: one prompt, the numbers of its completions in the generation, the number under which the
    replica knows their problem (None: they are not graded), and that problem where it does not know it yet."""

    rows: tuple[int, ...]
    prompt: list[int]
    problem: int | None = None
    told: Problem | None = None


@dataclass(frozen=True)
class Drawn:
    """A completion of row `row`: token ids (n,) int32 and log-probabilities (n,) float32."""

    row: int
    tokens: np.ndarray
    log_probs: np.ndarray

    @classmethod
    def of(cls, row: int, completion: Completion) -> Drawn:
        ids, values = completion.token_ids, completion.log_probs
        return cls(row, np.array(ids, dtype=np.int32), np.array(values, dtype=np.float32))

    @property
    def completion(self) -> Completion:
        return Completion(self.tokens.tolist(), self.log_probs.tolist())


@dataclass(frozen=True)
class Judged:
    """The verdict on row `row`."""

    row: int
    verdict: Verdict


@dataclass(frozen=True)
class Vector:
    """`v` (groups, u) float32 with the hash of its bits, and P (modules, u, r, r) float32 for who has another one."""

    values: np.ndarray
    digest: str
    projections_digest: str
    projections: np.ndarray | None = None

    @classmethod
    def of(cls, v: Tensor, bank: Any) -> Vector:
        """A vector for the adapter `bank`, without P."""
        values = v.detach().float().cpu().numpy().copy()
        return cls(values, digest(values), digest(bank.projections.cpu().numpy()))


@dataclass
class Share:
    """A part of a batch for one replica: whole groups, as arrays; and the policy by which it is trained. Of `prompt_`
    columns each group has one row."""

    columns: dict[str, np.ndarray]
    vector: Vector

    @classmethod
    def of(cls, batch: dict[str, Tensor], vector: Vector) -> Share:
        _, places = batch["group"].unique(return_inverse=True)
        rows = torch.arange(len(places), device=places.device)
        first = rows.new_full((int(places.max()) + 1,), len(places)).scatter_reduce(0, places, rows, "amin")
        once = {name: x[first] if name.startswith("prompt_") else x for name, x in batch.items()}
        return cls({name: narrowed(name, tensor) for name, tensor in once.items()}, vector)

    def batch(self, device: torch.device) -> dict[str, Tensor]:
        """The columns as TRL takes them."""
        batch = {name: widened(column).to(device) for name, column in self.columns.items()}
        _, places = batch["group"].unique(return_inverse=True)
        return {name: x[places] if name.startswith("prompt_") else x for name, x in batch.items()}


@dataclass
class Found:
    """What the training pass over a share found. gradient: of `v` (groups, u) float32, None where it lies in `v`
    itself. mismatch: mean k3 of engine and trainer over `compared` tokens. scores: ∇ log π of completions (n, p)
    float32, with `--lr auto`. charts: TRL's, a list of values a name. trained: rows that can be measured after the
    step."""

    loss: float = 0.0
    gradient: np.ndarray | None = None
    mismatch: float = 0.0
    compared: int = 0
    scores: list[np.ndarray] = field(default_factory=list)
    charts: dict[str, list[float]] = field(default_factory=dict)
    rows_trained: float = 0.0
    trained: int = 0
    seconds: float = 0.0


def digest(values: np.ndarray) -> str:
    """Hash of the bits of an array."""
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).hexdigest()


def narrowed(name: str, tensor: Tensor) -> np.ndarray:
    """As an array on the CPU; integers, which are ids and counts, in 32 bits, masks in 8."""
    array = tensor.detach().cpu()
    if array.dtype == torch.int64:
        array = array.to(torch.uint8 if name.endswith("_mask") else torch.int32)
    return array.numpy()


def widened(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.long() if tensor.dtype in (torch.int32, torch.uint8) else tensor


def total_gradient(gradients: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of shares' gradients in float64, in their order, as float32."""
    return np.sum([gradient.astype(np.float64) for gradient in gradients], axis=0).astype(np.float32)
