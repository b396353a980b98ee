"""A replica that trains, too: it adds up the gradient of a share, and hands it to the driver, which makes the step."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import RunConfig
from pipeline.scale.replica import Replica
from pipeline.scale.wire import Found, Share, TokenRows, Vector


class TrainingReplica(Replica):
    """A `Replica` with a training pass."""

    def load(self, config: RunConfig, sharing: int, lent: list[Any] | None = None) -> dict[str, Any]:
        about = super().load(config, sharing, lent)
        from pipeline.training.roles import ReplicaTrainer  # with TRL, which must come after Unsloth

        with tempfile.TemporaryDirectory(prefix="tinylora-replica-") as folder:  # must be there; nothing is written
            self.trainer = ReplicaTrainer(self.policy, config, Path(folder))
        return about

    def gradient(self, share: Share) -> Found:
        """The gradient of a share, and what else its training pass finds."""
        begun = time.monotonic()
        self.take_vector(share.vector)
        found = self.trainer.found(share.batch(self.policy.model.tinylora.v.device), share.step)
        found.begun, found.ended = begun, time.monotonic()
        return found

    def measure(self, vector: Vector, stride: int) -> tuple[float, int, int]:
        """After a step: sums over every `stride`th row trained of the KL from before it; see `StepLength.sums`."""
        self.take_vector(vector)
        length = self.trainer.length
        return length.sums(self.trainer._log_probs_of, stride) if length is not None else (0.0, 0, 0)

    def log_probs(self, vector: Vector, rows: TokenRows, width: int, base: bool) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and entropies (n, width) of completions, of the base or of the policy."""
        self.take_vector(vector)
        with self.policy.model.tinylora.disabled() if base else nullcontext():
            log_probs, entropies = self.trainer._log_probs_of(*rows.lists, width)
        return log_probs.cpu().numpy(), entropies.cpu().numpy()
