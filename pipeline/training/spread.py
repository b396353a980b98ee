"""The training pass over all replicas: shares out, gradients in. The driver's own share is computed meanwhile.

Gradients are summed in float64 in the order of the shares, not in that in which they came. A share whose replica was
lost is computed here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.scale.engine import FleetEngine
from pipeline.scale.shares import shares_of
from pipeline.scale.wire import Found, Share, total_gradient

LEAST_LIMIT = 300.0  # seconds for a share, and so many times what the driver's own took
TIMES_OWN = 20.0


class Spread:
    """gradient: adds that of a batch on this replica's card to `v`. take: gives the optimizer scores of others."""

    def __init__(
        self, engine: FleetEngine, gradient: Callable[[dict[str, Tensor]], Found], take: Callable[[Tensor], None]
    ) -> None:
        self.engine, self.fleet = engine, engine.fleet
        self._gradient, self._take = gradient, take

    def gradient(self, batch: dict[str, Tensor], every_row: bool) -> Found:
        """Add the gradient of the whole batch to `v`."""
        members = self.fleet.joined
        shares = shares_of(batch, len(members) + 1, every_row=every_row)
        vector = self.engine.vector()
        asked = [(member, (Share.of(share, vector),)) for member, share in zip(members, shares[1:], strict=False)]
        calls = self.fleet.ask("gradient", asked)
        v = self.engine.bank.v
        parts = [self._own(shares[0])]
        limit = max(LEAST_LIMIT, TIMES_OWN * parts[0].seconds)
        for (member, call), share in zip(calls, shares[1:], strict=True):
            found = self.fleet.answer(member, call, limit, "training")
            if found is None:
                found = self._own(share)
            else:
                self.fleet.seconds[member.number]["train"] += found.seconds
                for scores in found.scores:
                    self._take(torch.from_numpy(np.array(scores)).to(v.device))
            parts.append(found)
        start = time.perf_counter()
        gradients = [part.gradient for part in parts if part.gradient is not None]
        v.grad = torch.from_numpy(total_gradient(gradients)).to(v.device)
        merged = merged_found(parts)
        self.fleet.seconds[0]["merge"] += time.perf_counter() - start
        return merged

    def _own(self, share: dict[str, Tensor]) -> Found:
        start, v = time.perf_counter(), self.engine.bank.v
        v.grad = None
        found = self._gradient(share)
        found.gradient = np.zeros(v.shape, np.float32) if v.grad is None else v.grad.cpu().numpy()
        found.seconds = time.perf_counter() - start
        self.fleet.seconds[0]["train"] += found.seconds
        return found

    def sums(self, stride: int) -> list[tuple[float, int, int]]:
        """What the other replicas measure of the step just made; see `StepLength.sums`."""
        vector = self.engine.vector()
        calls = self.fleet.ask("measure", [(member, (vector, stride)) for member in self.fleet.joined])
        found = [self.fleet.answer(member, call, LEAST_LIMIT, "measuring the step") for member, call in calls]
        return [sums for sums in found if sums is not None]

    def log_probs(
        self, rows: tuple[Tensor, Tensor, Tensor], width: int, own: Callable[..., Any]
    ) -> tuple[Tensor, Tensor]:
        """As `own(rows, prompts, completions, width)`, which computes them here, each replica a part of the rows."""
        members, base = self.fleet.joined, not self.engine.bank.enabled
        count = len(members) + 1
        parts = [tuple(x[index::count] for x in rows) for index in range(count)]
        vector = self.engine.vector()
        asked = [
            (member, (vector, tuple(x.cpu().int().numpy() for x in part), width, base))
            for member, part in zip(members, parts[1:], strict=True)
            if len(part[0])
        ]
        calls = self.fleet.ask("log_probs", asked)
        start = time.perf_counter()
        found = [own(*parts[0], width)]
        limit = max(LEAST_LIMIT, TIMES_OWN * (time.perf_counter() - start))
        for (member, call), part in zip(calls, parts[1:], strict=False):
            answer = self.fleet.answer(member, call, limit, "computing log-probabilities")
            found.append(
                own(*part, width)
                if answer is None
                else tuple(torch.from_numpy(np.array(x)).to(rows[0].device) for x in answer)
            )
        log_probs, entropies = (torch.zeros(len(rows[0]), width, device=rows[0].device) for _ in range(2))
        for index, (ours, theirs) in enumerate(found):
            log_probs[index::count], entropies[index::count] = ours, theirs
        return log_probs, entropies


def merged_found(parts: list[Found]) -> Found:
    """What the training pass over a batch found, from what it found of its shares."""
    compared = sum(part.compared for part in parts)
    charts: dict[str, list[float]] = {}
    for part in parts:
        for name, values in part.charts.items():
            charts.setdefault(name, []).extend(values)
    return Found(
        loss=sum(part.loss for part in parts),
        mismatch=sum(part.mismatch * part.compared for part in parts) / max(1, compared),
        compared=compared,
        charts=charts,
        rows_trained=sum(part.rows_trained for part in parts),
        trained=sum(part.trained for part in parts),
    )
