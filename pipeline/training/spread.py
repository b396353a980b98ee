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
from pipeline.scale.wire import Found, Share, TokenRows, total_gradient
from pipeline.training.kl_step import Sums
from pipeline.training.packing import Tokens

LEAST_LIMIT = 300.0  # seconds for a share, and so many times what the driver's own took
TIMES_OWN = 20.0


class Spread:
    """gradient: adds that of a batch on this replica's card to `v`, returns its loss. take: is given what another
    replica found."""

    def __init__(
        self,
        engine: FleetEngine,
        gradient: Callable[[dict[str, Tensor]], Tensor],
        take: Callable[[Found], None],
    ) -> None:
        self.engine, self.fleet = engine, engine.fleet
        self._gradient, self._take = gradient, take

    def gradient(self, batch: dict[str, Tensor], every_row: bool, step: int = 0) -> float:
        """Add the gradient of a batch, or of some groups of the batch of a step, to `v`; returns the loss.

        Leaves in the lanes of the step how long this took beside training: `share`, until a replica's share was cut,
        sent and unpacked there; `answer`, a gradient's way back; of the driver `share`, until it began with its own,
        and `gather`, from the end of the slowest share to the sum of all.
        """
        start, seconds = time.monotonic(), self.fleet.seconds
        members, v = self.fleet.joined, self.engine.bank.v
        shares, vector = shares_of(batch, len(members) + 1, every_row=every_row), self.engine.vector()
        asked = ((member, (Share.of(share, vector, step),)) for member, share in zip(members, shares[1:], strict=False))
        calls = self.fleet.ask("gradient", asked)
        gradients = [] if v.grad is None else [v.grad.cpu().numpy()]
        begun = time.monotonic()
        seconds[0]["share"] += begun - start
        own, loss = self._own(shares[0])
        gradients.append(own)
        last = time.monotonic()  # when the slowest share was done
        limit = max(LEAST_LIMIT, TIMES_OWN * (last - begun))
        for (call, found), share in zip(self.fleet.answers(calls, limit, "training"), shares[1:], strict=True):
            if found is None:
                own, part = self._own(share)
                gradients.append(own)
                last = time.monotonic()
            else:
                begun, ended = found.begun - call.member.ahead, found.ended - call.member.ahead
                lane = seconds[call.member.number]
                lane["share"] += begun - start
                lane["train"] += ended - begun
                lane["answer"] += call.arrived - ended
                self._take(found)
                gradients.append(found.gradient)
                part, last = found.loss, max(last, ended)
            loss += part
        v.grad = torch.from_numpy(total_gradient(gradients)).to(v.device)
        seconds[0]["gather"] += time.monotonic() - last
        return loss

    def _own(self, share: dict[str, Tensor]) -> tuple[np.ndarray, float]:
        start, v = time.monotonic(), self.engine.bank.v
        v.grad = None
        loss = float(self._gradient(share))
        gradient = np.zeros(v.shape, np.float32) if v.grad is None else v.grad.cpu().numpy()
        self.fleet.seconds[0]["train"] += time.monotonic() - start
        return gradient, loss

    def sums(self, stride: int, own: Callable[[], Sums]) -> list[Sums]:
        """What all replicas measure of the step just made; see `StepLength.measure`."""
        vector = self.engine.vector()
        calls = self.fleet.ask("measure", [(member, (vector, stride)) for member in self.fleet.joined])
        found = [own(), *(sums for _, sums in self.fleet.answers(calls, LEAST_LIMIT, "measuring the step"))]
        return [sums for sums in found if sums is not None]

    def log_probs(
        self, prompts: Tokens, completions: Tokens, width: int, own: Callable[..., Any]
    ) -> tuple[Tensor, Tensor]:
        """As `own(prompts, completions, width)`, which computes them here, each replica those of some prompts."""
        members, vector, base = self.fleet.joined, self.engine.vector(), not self.engine.bank.enabled
        parts = [
            (rows, [prompts[row] for row in rows], [completions[row] for row in rows])
            for rows in whole_prompts(prompts, len(members) + 1)
        ]
        asked = [
            (member, (vector, TokenRows.of(*part), width, base))
            for member, (_, *part) in zip(members, parts[1:], strict=False)
        ]
        calls = self.fleet.ask("log_probs", asked)
        start = time.perf_counter()
        found = [own(*parts[0][1:], width)]
        limit = max(LEAST_LIMIT, TIMES_OWN * (time.perf_counter() - start))
        answers = self.fleet.answers(calls, limit, "computing log-probabilities")
        for (_, answer), (_, *part) in zip(answers, parts[1:], strict=True):
            found.append(own(*part, width) if answer is None else [torch.from_numpy(np.array(x)) for x in answer])
        device = self.engine.bank.v.device
        log_probs, entropies = (torch.zeros(len(prompts), width, device=device) for _ in range(2))
        for (rows, *_), answer in zip(parts, found, strict=True):
            log_probs[rows], entropies[rows] = (x.to(device) for x in answer)
        return log_probs, entropies


def whole_prompts(prompts: Tokens, count: int) -> list[list[int]]:
    """At most `count` lists of rows, none empty; rows with one prompt are in one of them."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(row)
    members = list(groups.values())
    return [[row for group in members[index::count] for row in group] for index in range(min(count, len(members)))]
