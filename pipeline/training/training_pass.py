"""The training pass on one device: from a batch, or a part of one, to the gradient of `v`.

`TinyLoRATrainer` makes steps of it; in a run with several replicas each of them has one, too (`roles.py`). A batch is
cut into parts of whole rows (`microbatch.py`), whose log-probabilities are computed without padding or kept logits,
each prompt once for its group (`logprobs.py`). The loss of a part is TRL's.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.served import count_steps
from pipeline.config import RunConfig
from pipeline.policy.loading import Policy
from pipeline.rollout.sampling_support import Truncation
from pipeline.training.device import wait_for_device
from pipeline.training.distance import Distance
from pipeline.training.entropy_bonus import entropy_loss
from pipeline.training.grpo import grpo_arguments
from pipeline.training.kl_step import StepLength
from pipeline.training.logprobs import completion_log_probs, log_probs_without_gradient
from pipeline.training.microbatch import micro_batches, packed_part
from pipeline.training.packing import Pack, Tokens
from pipeline.training.sampler import StepRecord
from pipeline.training.timeline import Timeline
from pipeline.training.trl_hooks import RolloutTrainer


class TrainingPass(RolloutTrainer):
    """folder: where TRL writes. rows: what it trains on, as of `training_rows`. What a pass finds is left in
    `record`."""

    def __init__(self, policy: Policy, config: RunConfig, folder: Path, rows: Any, timeline: Timeline) -> None:
        memory = policy.memory
        self.run_config = config
        self.micro_batch_tokens = policy.tokens_of_a_pass(config)
        arguments = grpo_arguments(config, folder, checkpointing=bool(memory and memory.gradient_checkpointing))
        super().__init__(policy, arguments, rows, config.beta)
        self.timeline, self.record = timeline, StepRecord(timeline)
        self.length: StepLength | None = None  # with `--lr auto`
        self.bank = policy.model.tinylora
        self.bank.v.data = self.bank.v.data.float()  # TRL casts trainable parameters of a 4-bit model to bf16
        self.truncation = Truncation(config.top_k, config.top_p)

    def _log_probs_of(self, prompts: Tokens, completions: Tokens, width: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (B, width) of the model as it is, without a gradient."""
        start = time.perf_counter()
        log_probs, entropies = log_probs_without_gradient(
            self.model, prompts, completions, width, self.temperature, self.micro_batch_tokens, self.truncation
        )
        wait_for_device()
        self.timeline.add("train", start)
        self.record.seconds["log_probs"] += time.perf_counter() - start
        return log_probs, entropies

    def gradient(self, batch: dict[str, Any]) -> Tensor:
        """Add the gradient of a batch, or of some groups of it, part by part; returns its loss."""
        tokens, bonus = int(batch["num_items_in_batch"]), self.run_config.entropy_bonus
        total = torch.zeros((), device=self.accelerator.device)
        for part, weight in self._micro_batches(batch):
            pack = packed_part(part)
            with (
                self.length.rows(pack, part) if self.length else nullcontext(),
                self.compute_loss_context_manager(),
            ):
                losses, entropies, difference = self.losses_of(part, pack)
                losses = [loss * weight for loss in losses]
                if bonus:
                    losses.append(entropy_loss(entropies, part["completion_mask"], tokens, bonus))
                if self.length and len(losses) > 1:  # only the first gives scores
                    self.accelerator.backward(losses[0], retain_graph=True)
                    self.length.take_scores()
                    self.accelerator.backward(sum(losses[1:]))
                else:
                    self.accelerator.backward(sum(losses))
                total += sum(loss.detach() for loss in losses)
            self.record.distances += [] if difference is None else [difference]
        return total

    def losses_of(self, part: dict[str, Any], pack: Pack) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The loss of a part of the batch, whose pack is given, and the penalty on the KL to the base if there is one;
        its entropies (n, T); and where the policy that is trained drew it, log p of the trainer less that of the
        engine, of every trained token."""
        log_probs, entropies = completion_log_probs(
            self.model,
            pack,
            part["completion_ids"].shape[1],
            self.temperature,
            self.truncation,
            self.run_config.entropy_bonus > 0,
        )
        if self.length is not None:
            self.length.watch(log_probs)
            self.length.trained(part, log_probs.detach())
        difference = None
        if "old_per_token_logps" not in part:
            difference = (log_probs.detach() - part["sampling_per_token_logps"])[part["completion_mask"].bool()]
        return self.policy_losses(part, log_probs, entropies), entropies, difference

    def _micro_batches(self, batch: dict[str, Any]) -> list[tuple[dict[str, Any], float]]:
        parts, share = micro_batches(batch, self.micro_batch_tokens, self.loss_type, every_row=self.every_row)
        self.record.values["rows_trained"] = self.record.values.get("rows_trained", 0.0) + share
        return parts

    @property
    def every_row(self) -> bool:
        """Whether rows without an advantage are trained, too."""
        return self.beta != 0 or self.run_config.entropy_bonus != 0

    def create_optimizer(self, *arguments: Any, **options: Any) -> torch.optim.Optimizer:
        """TRL's, with its steps counted as edits of `v`: those of fused ones, which Unsloth sets on a CPU, are not.
        With `--lr auto` ours, whose steps have a length in nats."""
        optimizer: torch.optim.Optimizer
        if self.run_config.learning_rate is None:
            betas = self.run_config.adam_beta1, self.run_config.adam_beta2
            self.length = StepLength(self.bank, self.run_config.step_kl, betas)
            self.optimizer = optimizer = self.length.optimizer
        else:
            optimizer = super().create_optimizer(*arguments, **options)
        count_steps(optimizer, self.bank.v)
        return optimizer

    def _distance(self) -> Distance:
        return Distance.of(self.record.distances)
