"""GRPO on the shared vector: rollouts by our engine, log-probabilities and advantages of our own, TRL's loss and loop.

A step is `roll_out`, which draws and judges a batch, and `train_on`, which adds its gradient. What stays TRL's: every
loss and the optimizer loop (`trl_hooks.py`). What is ours, and why:
- generation, so that only `v` travels and completions are graded as they finish;
- log-probabilities, computed in token-budget batches without padding or kept logits (`logprobs.py`);
- the training step, which cuts the batch into such batches and leaves out rows without an advantage;
- checkpoints, which hold `v` and appear whole.
With several replicas this is the driver's: it draws through `FleetEngine` and trains through `Spread`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from adapters import load_checkpoint, save_checkpoint
from adapters.base import dense_weight
from adapters.served import count_steps
from pipeline.config import RunConfig, parse_scales
from pipeline.policy.loading import Policy
from pipeline.report.trackers import log_rollouts, numbers
from pipeline.rollout import Sampling
from pipeline.rollout.rollouts import Rollouts, padded_log_probs
from pipeline.rollout.sampling_support import Truncation
from pipeline.rollout.streaming import StreamingGrader, verdict_metrics
from pipeline.run_folder import PHASES, RunFolder
from pipeline.scale.engine import FleetEngine
from pipeline.scale.wire import Found
from pipeline.tasks.problem_sets import advantage_scale
from pipeline.training.advantages import group_advantages, reward_tensor
from pipeline.training.collapse import check_mismatch
from pipeline.training.device import peak_memory, wait_for_device
from pipeline.training.dynamic_rollouts import DynamicRollouts
from pipeline.training.entropy_bonus import entropy_loss
from pipeline.training.grpo import grpo_arguments, training_rows, training_task
from pipeline.training.kl_step import MEASURED_ROWS, StepLength
from pipeline.training.logprobs import (
    completion_log_probs,
    kl_k3,
    log_probs_without_gradient,
    packed_rows,
    unpadded_rows,
)
from pipeline.training.microbatch import micro_batches, spread_rows
from pipeline.training.sampler import Drawn, PolicySampler, StepRecord
from pipeline.training.scoring import Scoring
from pipeline.training.spread import Spread
from pipeline.training.trl_hooks import RolloutTrainer
from pipeline.training.warmup import with_warm_up
from rewards.problem import Problem
from rewards.verdict import Verdict

KL_ROWS = 32  # rows on which the KL to the base is estimated when the loss does not need it


class TinyLoRATrainer(RolloutTrainer):
    """Trains `model.tinylora.v` on `grader.task`. `on_step(record)` receives one flat record per optimizer step; true
    ends the run once that step's checkpoint is written."""

    def __init__(
        self,
        policy: Policy,
        grader: StreamingGrader,
        problems: list[Problem],
        config: RunConfig,
        folder: RunFolder,
        on_step: Callable[[dict[str, Any]], bool | None],
        origin: Mapping[str, int] | None = None,
    ) -> None:
        memory = policy.memory
        self.run_config = config
        self.micro_batch_tokens = memory.micro_batch_tokens if memory else config.micro_batch_tokens
        arguments = grpo_arguments(config, folder.path, checkpointing=bool(memory and memory.gradient_checkpointing))
        super().__init__(policy, arguments, training_rows(problems, config, origin), config.beta)
        self.grader, self.problems, self.folder, self.on_step = grader, problems, folder, on_step
        self.record = StepRecord()
        self.rollouts: Rollouts | None = None  # of the step
        self.scales = parse_scales(config.advantage_scale)
        self.length: StepLength | None = None  # with `--lr auto`
        self.spread: Spread | None = None  # with several replicas
        if isinstance(policy.engine, FleetEngine):
            self.spread = Spread(policy.engine, self.gradient, self._take_scores)
        self._trained_elsewhere = 0  # rows of the step that other replicas trained
        self._one_policy = False  # whether engine and trainer were seen to be one
        self.bank = policy.model.tinylora
        self.bank.v.data = self.bank.v.data.float()  # TRL casts trainable parameters of a 4-bit model to bf16
        self.truncation = Truncation(config.top_k, config.top_p)
        sampling = Sampling(self.max_completion_length, self.temperature, config.seed, self.truncation)
        self.sampler = PolicySampler(policy, grader, problems, self.num_generations, sampling)
        self.scoring = Scoring(training_task(grader.task, config), config, self.ends)
        self.dynamic: DynamicRollouts | None = None
        if config.dynamic_sampling:
            self.dynamic = DynamicRollouts(self.sampler, self.scoring, config, origin)
        norms = [dense_weight(layer.base_layer).float().norm() for layer in self.bank.layers]
        self.base_norm = float(torch.stack(norms).norm())
        self.sigma = torch.stack([layer.left.norm(dim=0) for layer in self.bank.layers])[..., None]  # (modules, r, 1)

    # rollouts

    def roll_out(self, problems: list[int]) -> Rollouts:
        """Draw, judge and weigh the batch of a step, and write it down. What the model computes of it comes before the
        verdicts are waited for, since the last programs are still being graded then."""
        if self.dynamic is None:
            drawn = self.sampler.draw(self.state.global_step, self.record, problems)
        else:  # chooses problems of its own
            drawn = self.dynamic.draw(self.state.global_step, self.record)
        masked = self.scoring.masked(drawn.completions)
        base = self._compare_with_base(drawn)
        old = None if self.num_iterations == 1 else self._old_log_probs(drawn, masked)
        verdicts = self._verdicts(drawn)
        texts = [self.sampler.text(completion) for completion in drawn.completions]
        judged = [self.problems[index] for index in drawn.problems]
        scores, totals = self.scoring.scores(judged, drawn.completions, texts, verdicts)
        self.rollouts = Rollouts(
            group_size=self.num_generations,
            problems=drawn.problems,
            prompts=drawn.prompts,
            completions=drawn.completions,
            versions=drawn.versions,
            texts=texts,
            masked=masked,
            verdicts=verdicts,
            scores=scores,
            totals=totals,
            advantages=self._advantages(judged, totals),
            base_log_probs=base if self.beta else None,
            old_log_probs=old,
        )
        self._write_down(self.rollouts)
        if old is not None:
            differences = (old.cpu() - self.rollouts.sampled_log_probs())[self.rollouts.mask().bool()]
            self._note_mismatch(kl_k3(differences, torch.ones_like(differences)))
        return self.rollouts

    def _compare_with_base(self, drawn: Drawn) -> Tensor:
        """Log-probabilities (n, T) under the base and the KL to it: of all rows where the loss has a KL term, else of
        rows spread over all groups."""
        count = len(drawn.completions)
        chosen = spread_rows(count, count if self.beta else KL_ROWS)
        sampled = padded_log_probs(drawn.completions).to(self.accelerator.device)
        completions = [drawn.completions[row].token_ids for row in chosen]
        rows, prompts, lengths = unpadded_rows([drawn.prompts[row] for row in chosen], completions, sampled.device)
        width = sampled.shape[1]
        with self.bank.disabled():
            base, _ = self._log_probs_of_rows(rows, prompts, lengths, width)
        mask = torch.arange(width, device=rows.device) < lengths.unsqueeze(1)
        self.record.values["kl_base"] = kl_k3(base - sampled[chosen], mask)
        return base

    def _old_log_probs(self, drawn: Drawn, masked: list[bool]) -> Tensor:
        """(B, T) of the policy that drew, computed as in training: for batches that are trained more than once."""
        trained = [[] if cut else c.token_ids for c, cut in zip(drawn.completions, masked, strict=True)]
        rows, prompts, lengths = unpadded_rows(drawn.prompts, trained, self.accelerator.device)
        width = max(len(completion.token_ids) for completion in drawn.completions)
        return self._log_probs_of_rows(rows, prompts, lengths, width)[0]

    def _verdicts(self, drawn: Drawn) -> list[Verdict]:
        verdicts = self.grader.collect(drawn.graded_rows)
        self.record.seconds["grade_wait"] += self.grader.times.wait
        self.record.values["grading_hidden"] = self.grader.times.hidden
        self.record.values |= drawn.metrics or verdict_metrics(verdicts)
        return verdicts

    def _advantages(self, problems: list[Problem], totals: list[float | None]) -> list[float]:
        rewards = reward_tensor(totals).to(self.accelerator.device)
        advantages = group_advantages(rewards, self.num_generations, self.run_config.scale_rewards)
        silent = (advantages.view(-1, self.num_generations) == 0).all(dim=1)
        self.record.values["zero_variance_groups"] = float(silent.float().mean())
        if self.scales:  # here and not in the rewards: the group's normalisation would take any factor out again
            factors = [advantage_scale(problem, self.scales) for problem in problems]
            advantages = advantages * advantages.new_tensor(factors)
        return advantages.tolist()

    def _write_down(self, rollouts: Rollouts) -> None:
        step = self.state.global_step + 1
        self.record.rollouts = rollouts.records(step, [self.problems[index].id for index in rollouts.problems])
        self.folder.write_rollouts(f"step-{step:05d}", self.record.rollouts)

    def _log_probs_of_rows(
        self, rows: Tensor, prompts: Tensor, completions: Tensor, width: int
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (B, width) of the model as it is, without a gradient. Many rows are shared
        out to all replicas."""
        if self.spread is not None and len(rows) > KL_ROWS:
            return self.spread.log_probs((rows, prompts, completions), width, self._log_probs_here)
        return self._log_probs_here(rows, prompts, completions, width)

    def _log_probs_here(self, rows: Tensor, prompts: Tensor, completions: Tensor, width: int) -> tuple[Tensor, Tensor]:
        start = time.perf_counter()
        log_probs, entropies = log_probs_without_gradient(
            self.model, rows, prompts, completions, width, self.temperature, self.micro_batch_tokens, self.truncation
        )
        wait_for_device()
        self.record.seconds["log_probs"] += time.perf_counter() - start
        return log_probs, entropies

    def _note_mismatch(self, mismatch: float) -> None:
        """Record the mismatch of trainer and engine, k3 a token; the first must be small."""
        self.record.values["mismatch"] = mismatch
        if not self._one_policy:
            check_mismatch(mismatch, self.run_config.model or "")
            self._one_policy = True

    # the training pass

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.record.seconds["step"] += time.perf_counter() - start
        return loss

    def train_on(self, batch: dict[str, Any]) -> Tensor:
        """Add the gradient of a batch, part by part; returns its loss."""
        begin = time.perf_counter()
        if self.rollouts is not None and self.rollouts.old_log_probs is None:
            self.rollouts.check_version(self.state.global_step)
        found = self.gradient(batch) if self.spread is None else self.spread.gradient(batch, self._every_row)
        for name, values in found.charts.items():
            self._metrics["train"][name].extend(values)
        self.record.values["rows_trained"] = found.rows_trained
        self._trained_elsewhere = found.trained - (self.length.trained_rows if self.length else 0)
        if found.compared:
            self._note_mismatch(found.mismatch)
        self.record.seconds["backward"] += time.perf_counter() - begin
        return torch.tensor(found.loss, device=self.accelerator.device)

    def gradient(self, batch: dict[str, Any]) -> Found:
        """Add the gradient of a batch, or of a share of one, to `v`, part by part."""
        tokens, bonus = int(batch["num_items_in_batch"]), self.run_config.entropy_bonus
        total = torch.zeros((), device=self.accelerator.device)
        differences = []
        if self.length is not None:
            self.length.forget()
        for part, weight in self._micro_batches(batch):
            with self.length.rows(part) if self.length else nullcontext(), self.compute_loss_context_manager():
                loss, entropies, difference = self.loss_of(part)
                loss = loss * weight
                self.accelerator.backward(loss, retain_graph=bonus > 0)
                total += loss.detach()
                if bonus:
                    if self.length:
                        self.length.take_scores()
                    loss = entropy_loss(entropies, part["completion_mask"], tokens, bonus)
                    self.accelerator.backward(loss)
                    total += loss.detach()
            differences += [] if difference is None else [difference]
        wait_for_device()
        found = Found(float(total), rows_trained=self.record.values["rows_trained"])
        found.trained = self.length.trained_rows if self.length else 0
        if differences:
            every = torch.cat(differences)
            found.mismatch, found.compared = kl_k3(every, torch.ones_like(every)), len(every)
        return found

    def loss_of(self, part: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The loss of a part of the batch, its entropies (n, T), and where the policy that is trained drew it, log p of
        the trainer less that of the engine, of every trained token."""
        columns = (part[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"))
        log_probs, entropies = completion_log_probs(
            self.model,
            *packed_rows(*columns),
            part["completion_ids"].shape[1],
            self.temperature,
            self.truncation,
            self.run_config.entropy_bonus > 0,
        )
        if self.length is not None:
            self.length.watch(log_probs)
        difference = None
        if "old_per_token_logps" not in part:
            old = log_probs.detach()
            difference = (old - part["sampling_per_token_logps"])[part["completion_mask"].bool()]
            if self.length is not None:
                self.length.trained(part, old)
        return self.policy_loss(part, log_probs, entropies), entropies, difference

    def _micro_batches(self, batch: dict[str, Any]) -> list[tuple[dict[str, Any], float]]:
        parts, share = micro_batches(batch, self.micro_batch_tokens, self.loss_type, every_row=self._every_row)
        self.record.values["rows_trained"] = share
        return parts

    @property
    def _every_row(self) -> bool:
        """Whether rows without an advantage are trained, too."""
        return self.beta != 0 or self.run_config.entropy_bonus != 0

    def as_replica(self) -> TinyLoRATrainer:
        """Made ready to give gradients to another trainer, as `train` makes it ready to step."""
        self.create_optimizer()
        self.current_gradient_accumulation_steps = 1
        if self.args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(self.args.gradient_checkpointing_kwargs)
        self.model.train()
        return self

    def _take_scores(self, scores: Tensor) -> None:
        if self.length is not None:
            self.length.optimizer.observe(scores)

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

    def create_scheduler(self, *arguments: Any, **options: Any) -> Any:
        """TRL's, with the warm-up of this project."""
        scheduler = super().create_scheduler(*arguments, **options)
        if self.run_config.warmup_steps:
            self.lr_scheduler = scheduler = with_warm_up(scheduler, self.run_config.warmup_steps)
        return scheduler

    # records and checkpoints

    @torch.no_grad()
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        averages = self.averages()
        if "grad_norm" in logs and self.length is not None:
            self.record.values |= self._measured_step(self.length)
        if self.spread is not None:
            self.record.values["replicas"] = self.spread.fleet.lanes()
        record = self._step_metrics(logs, averages) if "grad_norm" in logs else None
        tracked = numbers(record) if record is not None and self.run_config.report_to != "none" else {}
        super().log(logs | tracked, start_time)
        if record is not None:
            tracker, callbacks = self.run_config.report_to, self.callback_handler.callbacks
            log_rollouts(tracker, callbacks, self.state.global_step, self.record.rollouts)
            self.record = StepRecord()
            if self.on_step(record):
                self.control.should_training_stop = True

    def _measured_step(self, length: StepLength) -> dict[str, float]:
        """The KL of the step just made, on rows of the whole batch."""
        mismatch = self.record.values.get("mismatch", 0.0)
        if self.spread is None or not length.optimizer.last_predicted:
            return length.measure(self._log_probs_of_rows, mismatch)
        stride = -(-(length.trained_rows + self._trained_elsewhere) // MEASURED_ROWS)
        own = length.sums(self._log_probs_here, stride)
        return length.judged([own, *self.spread.sums(stride)], mismatch)

    def _step_metrics(self, logs: dict[str, float], averages: dict[str, float]) -> dict[str, Any]:
        seconds = {name: round(self.record.seconds[name], 4) for name in (*PHASES, "step")}
        rewards = {reward.name: averages.get(f"rewards/{reward.name}/mean") for reward in self.scoring.task.rewards}
        seconds["train"] = round(seconds["log_probs"] + seconds["backward"], 4)
        return {
            "step": self.state.global_step,
            "reward": averages.get("reward"),
            "reward_std": averages.get("reward_std"),
            "rewards": rewards,
            **self.record.values,
            "clip_ratio": averages.get("cispo_clip_ratio" if self.loss_type == "cispo" else "clip_ratio/region_mean"),
            "mean_length": averages.get("completions/mean_length"),
            "truncated": averages.get("completions/clipped_ratio"),
            "loss": logs.get("loss"),
            "grad_norm": float(logs["grad_norm"]),
            "lr": self.length.optimizer.last_length if self.length else logs.get("learning_rate"),
            "v_norm": float(self.bank.v.norm()),
            "v": [round(x, 6) for x in self.bank.v.detach().flatten().tolist()],
            "delta_norm": float((self.bank.mixings() * self.sigma).norm()) / self.base_norm,
            "gpu_memory": peak_memory(),
            "seconds": seconds,
        }

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(folder, self.model, self.run_config.model or "")
        if self.dynamic is not None:
            self.dynamic.save(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written under a temporary name: a killed run never leaves half a checkpoint behind."""
        shutil.rmtree(self.folder.partial, ignore_errors=True)
        Trainer._save_checkpoint(self, model, trial)  # TRL's would also write a model card every step
        self.folder.publish_checkpoint(self.state.global_step)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder.partial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_checkpoint(resume_from_checkpoint, self.model)
        if self.dynamic is not None:
            self.dynamic.load(Path(resume_from_checkpoint))
