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
    """A part of a batch for one replica: whole groups, as arrays; the policy by which it is trained, and the number of
    the step that it is of. Of `prompt_` columns each group has one row."""

    columns: dict[str, np.ndarray]
    vector: Vector
    step: int = 0

    @classmethod
    def of(cls, batch: dict[str, Tensor], vector: Vector, step: int = 0) -> Share:
        _, places = batch["group"].unique(return_inverse=True)
        first = first_of_each(places)
        once = {name: x[first] if name.startswith("prompt_") else x for name, x in batch.items()}
        return cls({name: narrowed(name, tensor) for name, tensor in once.items()}, vector, step)

    def batch(self, device: torch.device) -> dict[str, Tensor]:
        """The columns as TRL takes them."""
        batch = {name: widened(column).to(device) for name, column in self.columns.items()}
        _, places = batch["group"].unique(return_inverse=True)
        return {name: x[places] if name.startswith("prompt_") else x for name, x in batch.items()}


@dataclass
class Found:
    """What the training pass over a share found. gradient: of `v` (groups, u) float32. observed: with `--lr auto` what
    the step is made with beside it, as `pipeline.training.kl_step.Observed` names them: scores (n, p) float32 and their
    count, sums of gradients (m, p) of groups and the groups' numbers (m,). distance: k3 a token from who drew, share of
    ratios cut, tokens. charts: TRL's, a list of values a name. rows_trained: as a share of the whole batch's. trained:
    how many rows can be measured after the step. begun, ended: when the share was there and when this was found, by the
    replica's `time.monotonic`."""

    gradient: np.ndarray
    loss: float = 0.0
    observed: tuple[np.ndarray, int, np.ndarray, np.ndarray] | None = None
    distance: tuple[float, float, int] = (0.0, 0.0, 0)
    charts: dict[str, list[float]] = field(default_factory=dict)
    rows_trained: float = 0.0
    trained: int = 0
    begun: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class TokenRows:
    """Prompts and completions as arrays of token ids, a prompt that several rows share once; `places` says whose."""

    prompts: list[np.ndarray]
    places: list[int]
    completions: list[np.ndarray]

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> TokenRows:
        numbers: dict[tuple[int, ...], int] = {}
        places = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        return cls([np.array(ids, np.int32) for ids in numbers], places, [np.array(c, np.int32) for c in completions])

    @property
    def lists(self) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts and completions of all rows."""
        prompts = [prompt.tolist() for prompt in self.prompts]
        return [prompts[place] for place in self.places], [completion.tolist() for completion in self.completions]


def first_of_each(places: Tensor) -> Tensor:
    """The first row of each of the numbers 0 to m - 1 in `places` (n,)."""
    rows = torch.arange(len(places), device=places.device)
    return rows.new_full((int(places.max()) + 1,), len(places)).scatter_reduce(0, places, rows, "amin")


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
