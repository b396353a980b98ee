"""A replica that trains, too: it adds up the gradient of a share, and hands it to the driver, which makes the step.

Its trainer is the driver's, with the same loss and the same micro-batches; it never makes a step, logs or saves.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import RunConfig
from pipeline.rollout.streaming import StreamingGrader
from pipeline.run_folder import RunFolder
from pipeline.scale.replica import Replica
from pipeline.scale.wire import Found, Share, Vector
from rewards.problem import Problem

NO_STEPS: dict[str, Any] = {  # what only concerns who makes steps
    "steps": 1,
    "warmup_steps": 0,
    "eval_every": 0,
    "dynamic_sampling": False,
    "dynamic_limit": None,
    "dataset_weights": None,
    "report_to": "none",
}


class TrainingReplica(Replica):
    """A `Replica` with a training pass."""

    def load(self, config: RunConfig, sharing: int, lent: list[Any] | None = None) -> dict[str, Any]:
        about = super().load(config, sharing, lent)
        from pipeline.training.trainer import TinyLoRATrainer  # with TRL, which must come after Unsloth

        folder = RunFolder(Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tinylora-replica-"))))
        grader = StreamingGrader(None, self.task)
        alone = replace(config, **NO_STEPS)
        self.trainer = TinyLoRATrainer(
            self.policy, grader, [Problem("none", "")], alone, folder, lambda record: None
        ).as_replica()
        return about

    def gradient(self, share: Share) -> Found:
        """The gradient of a share, and what else its training pass finds."""
        start = time.perf_counter()
        self.take_vector(share.vector)
        trainer, bank = self.trainer, self.policy.model.tinylora
        bank.v.grad = None
        found = trainer.gradient(share.batch(bank.v.device))
        found.gradient = np.zeros(bank.v.shape, np.float32) if bank.v.grad is None else bank.v.grad.cpu().numpy()
        found.charts, trainer._metrics["train"] = dict(trainer._metrics["train"]), type(trainer._metrics["train"])(list)
        if trainer.length is not None:
            found.scores = [scores.cpu().numpy() for scores in trainer.length.optimizer.take_observed()]
        found.seconds = time.perf_counter() - start
        return found

    def measure(self, vector: Vector, stride: int) -> tuple[float, int, int]:
        """After a step: sums over every `stride`th row trained of the KL from before it; see `StepLength.sums`."""
        self.take_vector(vector)
        length = self.trainer.length
        return length.sums(self.trainer._log_probs_of_rows, stride) if length is not None else (0.0, 0, 0)

    def log_probs(
        self, vector: Vector, rows: tuple[np.ndarray, ...], width: int, base: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and entropies (n, width) of `unpadded_rows`, of the base or of the policy."""
        self.take_vector(vector)
        bank, trainer = self.policy.model.tinylora, self.trainer
        ids, prompts, completions = (torch.from_numpy(np.array(part)).long().to(bank.v.device) for part in rows)
        before, bank.enabled = bank.enabled, not base
        try:
            log_probs, entropies = trainer._log_probs_of_rows(ids, prompts, completions, width)
        finally:
            bank.enabled = before
        return log_probs.cpu().numpy(), entropies.cpu().numpy()
