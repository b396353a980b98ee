"""The trainer of a run with several replicas in its two roles: the driver's makes the steps, which all the others'
gradients are parts of. Loss, micro-batches and log-probabilities are those of `TrainingPass` in both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from pipeline.config import RunConfig
from pipeline.policy.loading import Policy
from pipeline.scale.engine import FleetEngine
from pipeline.scale.wire import Found
from pipeline.training.distance import Distance
from pipeline.training.kl_step import StepLength
from pipeline.training.packing import Tokens
from pipeline.training.sampler import StepRecord
from pipeline.training.spread import Spread
from pipeline.training.timeline import Timeline
from pipeline.training.trainer import KL_ROWS, TinyLoRATrainer
from pipeline.training.training_pass import TrainingPass


def trainer_of(policy: Policy) -> type[TinyLoRATrainer]:
    """The trainer that makes steps of a policy: of one replica, or of several."""
    return DriverTrainer if isinstance(policy.engine, FleetEngine) else TinyLoRATrainer


class DriverTrainer(TinyLoRATrainer):
    """Draws through `FleetEngine` and trains through `Spread`; what replicas found is told as if it were found here."""

    def __init__(self, policy: Policy, *arguments: Any, **options: Any) -> None:
        assert isinstance(policy.engine, FleetEngine)
        self.spread = Spread(policy.engine, super().gradient, self._take)
        super().__init__(policy, *arguments, **options)
        self._distances_elsewhere: list[tuple[float, float, int]] = []  # of the step's tokens that others trained
        self._trained_elsewhere = 0  # rows of the step that others trained

    @property
    def replicas(self) -> int:
        return 1 + len(self.spread.fleet.joined)

    def gradient(self, batch: dict[str, Any]) -> Tensor:
        loss = self.spread.gradient(batch, self.every_row, self.state.global_step)
        return torch.tensor(loss, device=self.accelerator.device)

    def _take(self, found: Found) -> None:
        values = self.record.values
        values["rows_trained"] = values.get("rows_trained", 0.0) + found.rows_trained
        for name, charted in found.charts.items():
            self._metrics["train"][name].extend(charted)
        self._distances_elsewhere.append(found.distance)
        self._trained_elsewhere += found.trained
        if self.length is not None and found.observed is not None:
            scores, count, gradients, groups = found.observed
            scores, gradients, groups = (
                torch.from_numpy(np.array(x)).to(self.bank.v.device) for x in (scores, gradients, groups)
            )
            self.length.optimizer.observe(scores, count)
            self.length.optimizer.observe_gradients(gradients, groups)

    def _distance(self) -> Distance:
        return Distance.merged([super()._distance(), *self._distances_elsewhere])

    def _log_probs_of(self, prompts: Tokens, completions: Tokens, width: int) -> tuple[Tensor, Tensor]:
        """Many rows are shared out to all replicas."""
        here = super()._log_probs_of
        if len(completions) <= KL_ROWS:
            return here(prompts, completions, width)
        return self.spread.log_probs(prompts, completions, width, here)

    def _measured_step(self, length: StepLength, noise: float) -> dict[str, float]:
        return length.measure(super()._log_probs_of, noise, self._trained_elsewhere, self.spread.sums)

    def _step_metrics(self, logs: dict[str, float], averages: dict[str, float]) -> dict[str, Any]:
        self._distances_elsewhere, self._trained_elsewhere = [], 0
        return super()._step_metrics(logs, averages) | {"replicas": self.spread.fleet.lanes()}


class ReplicaTrainer(TrainingPass):
    """Gives gradients to the driver's trainer, ready for it as `train` would make it; makes no step, logs and saves
    nothing. config: of the run. folder: an empty one."""

    def __init__(self, policy: Policy, config: RunConfig, folder: Path) -> None:
        rows = Dataset.from_dict({"problem": [0]})  # TRL wants some
        super().__init__(policy, replace(config, report_to="none"), folder, rows, Timeline())
        self._step_of_share = -1
        self.create_optimizer()
        self.current_gradient_accumulation_steps = 1
        if self.args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(self.args.gradient_checkpointing_kwargs)
        self.model.train()

    def found(self, batch: dict[str, Tensor], step: int) -> Found:
        """What the training pass over a share of the batch of `step`, or over one of several, finds."""
        v, length, charts = self.bank.v, self.length, self._metrics["train"]
        if length is not None and step != self._step_of_share:
            length.forget()
        self._step_of_share, self.record = step, StepRecord(self.timeline)
        self.timeline.begin()
        before = length.trained_rows if length is not None else 0
        v.grad = None
        loss = float(self.gradient(batch))
        found = Found(np.zeros(v.shape, np.float32) if v.grad is None else v.grad.cpu().numpy().copy(), loss)
        found.charts = {name: list(values) for name, values in charts.items()}
        charts.clear()
        found.distance, found.rows_trained = self._distance(), self.record.values["rows_trained"]
        if length is not None:
            scores, count, gradients, groups = length.optimizer.take_observed()
            found.observed = scores.cpu().numpy(), count, gradients.cpu().numpy(), groups.cpu().numpy()
            found.trained = length.trained_rows - before
        return found
