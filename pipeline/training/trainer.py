"""GRPO on the shared vector: rollouts by our engine, log-probabilities and advantages of our own, TRL's loss and loop.

A step is `roll_out`, which draws and judges a batch, and `train_on`, which adds its gradient. What stays TRL's: every
loss and the optimizer loop (`trl_hooks.py`). What is ours, and why:
- generation, so that only `v` travels and completions are graded as they finish;
- the training pass, which cuts the batch into parts and leaves out rows without an advantage (`training_pass.py`);
- checkpoints, which hold `v` and appear whole;
- with `--staleness 1`, batches that are drawn a step before they are trained (`ahead.py`).
One process trains on one device; those of several replicas are in `roles.py`.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from adapters import load_checkpoint, save_checkpoint
from adapters.base import dense_weight
from pipeline.config import RunConfig, parse_scales
from pipeline.policy.loading import Policy
from pipeline.report.trackers import log_rollouts, numbers
from pipeline.rollout import Sampling
from pipeline.rollout.rollouts import UNJUDGED, Rollouts, padded_log_probs
from pipeline.rollout.streaming import StreamingGrader, verdict_metrics
from pipeline.run_folder import PHASES, RunFolder
from pipeline.training.ahead import DrawnAhead
from pipeline.training.collapse import check_mismatch, check_range
from pipeline.training.device import peak_memory, wait_for_device
from pipeline.training.dynamic_rollouts import DynamicRollouts
from pipeline.training.grpo import training_rows, training_task
from pipeline.training.judging import Judging
from pipeline.training.kl_step import StepLength
from pipeline.training.logprobs import kl_k3
from pipeline.training.microbatch import rows_of, spread_rows
from pipeline.training.sampler import Drawn, PolicySampler, StepRecord
from pipeline.training.scoring import Scoring
from pipeline.training.timeline import Timeline
from pipeline.training.training_pass import TrainingPass
from pipeline.training.warmup import with_warm_up
from rewards.problem import Problem

KL_ROWS = 32  # rows on which the KL to the base is estimated when the loss does not need it


class TinyLoRATrainer(TrainingPass):
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
        timeline: Timeline | None = None,
    ) -> None:
        timeline = timeline or Timeline(grader.pool)
        super().__init__(policy, config, folder.path, training_rows(problems, config, origin), timeline)
        self.grader, self.problems, self.folder, self.on_step = grader, problems, folder, on_step
        self.rollouts: Rollouts | None = None  # of the step
        self.judging: Judging | None = None  # of the step's rollouts
        self.scales = parse_scales(config.advantage_scale)
        self.mismatch: float | None = None  # of engine and trainer, as last seen
        sampling = Sampling(self.max_completion_length, self.temperature, config.seed, self.truncation)
        self.sampler = PolicySampler(policy, grader, problems, self.num_generations, sampling)
        self.scoring = Scoring(training_task(grader.task, config), config, self.ends)
        self.dynamic: DynamicRollouts | None = None
        if config.dynamic_sampling:
            self.dynamic = DynamicRollouts(self.sampler, self.scoring, config, origin)
        self.ahead: DrawnAhead | None = None
        if config.staleness:
            self.ahead = DrawnAhead(self.sampler, list(self.train_dataset["problem"]), config.prompts_per_step)
        norms = [dense_weight(layer.base_layer).float().norm() for layer in self.bank.layers]
        self.base_norm = float(torch.stack(norms).norm())
        self.sigma = torch.stack([layer.left.norm(dim=0) for layer in self.bank.layers])[..., None]  # (modules, r, 1)

    @property
    def replicas(self) -> int:
        """How many share the training pass."""
        return 1

    # rollouts

    def roll_out(self, problems: list[int]) -> Rollouts:
        """Draw the batch of a step, judge it and write it down; one that was drawn ahead is judged while it is trained
        (`judged`). What the model computes of it comes before the verdicts are waited for, since the last programs are
        still being graded then."""
        drawn = self._draw(problems)
        masked = self.scoring.masked(drawn.completions)
        base = self._compare_with_base(drawn)
        if self.ahead is not None:
            newest = self.ahead.next or drawn
            if newest.versions[0][0] == self.state.global_step:  # drawn by the policy that is trained now
                self._note_mismatch(self._compare(newest, KL_ROWS)[1])
        old = None if self.num_iterations == 1 else self._old_log_probs(drawn, masked)
        count = len(drawn.completions)
        self.rollouts = Rollouts(
            group_size=self.num_generations,
            problems=drawn.problems,
            prompts=drawn.prompts,
            completions=drawn.completions,
            versions=drawn.versions,
            texts=[self.sampler.text(completion) for completion in drawn.completions],
            masked=masked,
            verdicts=[UNJUDGED] * count,
            scores={},
            totals=[None] * count,
            advantages=[math.nan] * count,
            base_log_probs=base if self.beta else None,
            old_log_probs=old,
        )
        of_rows = [self.problems[index] for index in drawn.problems]
        scale, device = self.run_config.scale_rewards, self.accelerator.device
        self.judging = Judging(self.rollouts, drawn, self.scoring, of_rows, scale, self.scales, device)
        if self.ahead is None:
            self._judge(self.judging, self.judging.left)
        if old is not None:
            differences = (old.cpu() - self.rollouts.sampled_log_probs())[self.rollouts.mask().bool()]
            self._note_mismatch(kl_k3(differences, torch.ones_like(differences)))
        return self.rollouts

    def _draw(self, problems: list[int]) -> Drawn:
        step = self.state.global_step
        if self.ahead is not None:
            return self.ahead.draw(step, self.record)
        self.sampler.serve(step, self.record)
        if self.dynamic is not None:  # chooses problems of its own
            return self.dynamic.draw(step, self.record)
        return self.sampler.draw(step, self.record, problems)

    def _compare_with_base(self, drawn: Drawn) -> Tensor:
        """Log-probabilities (n, T) under the base and the KL to it: of all rows where the loss has a KL term, else of
        rows spread over all groups."""
        with self.bank.disabled():
            base, kl = self._compare(drawn, len(drawn.completions) if self.beta else KL_ROWS)
        self.record.values["kl_base"] = kl
        return base

    def _compare(self, drawn: Drawn, count: int) -> tuple[Tensor, float]:
        """Log-probabilities (n, T) of `count` rows, spread over all groups, by the model as it is, and its KL (k3, nats
        a token) from the policy that drew them."""
        chosen = spread_rows(len(drawn.completions), count)
        sampled = padded_log_probs(drawn.completions).to(self.accelerator.device)
        completions = [drawn.completions[row].token_ids for row in chosen]
        log_probs, _ = self._log_probs_of([drawn.prompts[row] for row in chosen], completions, sampled.shape[1])
        lengths = torch.tensor([len(tokens) for tokens in completions], device=log_probs.device)
        mask = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths.unsqueeze(1)
        return log_probs, kl_k3(log_probs - sampled[chosen], mask)

    def _old_log_probs(self, drawn: Drawn, masked: list[bool]) -> Tensor:
        """(B, T) of the policy that drew, computed as in training: for batches that are trained more than once."""
        trained = [[] if cut else c.token_ids for c, cut in zip(drawn.completions, masked, strict=True)]
        width = max(len(completion.token_ids) for completion in drawn.completions)
        return self._log_probs_of(drawn.prompts, trained, width)[0]

    def _judge(self, judging: Judging, groups: list[int]) -> list[int]:
        """Wait for the verdicts of these groups; returns their rows. With the last ones the batch is written down."""
        rows = judging.judge(groups)
        if not judging.left:
            drawn, times = judging.drawn, judging.drawn.grading.times
            self.record.seconds["grade_wait"] += times.wait
            self.record.values["grading_hidden"] = times.hidden
            self.record.values["zero_variance_groups"] = judging.silent
            self.record.values |= verdict_metrics(judging.rollouts.verdicts) | drawn.metrics
            self._write_down(judging.rollouts)
            self.chart(judging.rollouts)
        return rows

    def judged(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The batch; one that was drawn ahead as its groups are complete, so that late graders do not hold the rest."""
        judging = self.judging
        if judging is None or not judging.left:
            yield batch
            return
        place = batch["row"].argsort()
        while judging.left:
            rows = self._judge(judging, judging.complete(self.replicas))
            advantages = batch["advantages"].new_tensor([judging.rollouts.advantages[row] for row in rows])
            yield rows_of(batch, place[rows]) | {"advantages": advantages}

    def _write_down(self, rollouts: Rollouts) -> None:
        step = self.state.global_step + 1
        self.record.rollouts = rollouts.records(step, [self.problems[index].id for index in rollouts.problems])
        self.folder.write_rollouts(f"step-{step:05d}", self.record.rollouts)

    def _note_mismatch(self, mismatch: float) -> None:
        """Record the mismatch of trainer and engine, k3 in nats a token; the first must be small."""
        if self.mismatch is None:
            check_mismatch(mismatch, self.run_config.model or "")
        self.record.values["mismatch"] = self.mismatch = mismatch

    def _note_distance(self) -> None:
        """Record how far the policy that is trained is from the one that drew: with batches drawn ahead what the step
        between did, and what of it was cut, else the mismatch."""
        distance = self._distance()
        if distance.tokens and self.ahead is None:
            self._note_mismatch(distance.kl)
        elif distance.tokens:
            self.record.values |= {"off_policy": distance.kl, "ratios_cut": distance.cut}

    # the training pass

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        # In other types this is a collapse of the policy, and the run goes back to its best one.
        if self.run_config.dtype == "float16" and self.bank.v.grad is not None:
            check_range(self.bank.v.grad, f"step {self.state.global_step + 1}")
        self.record.seconds["step"] += time.perf_counter() - start
        return loss

    def train_on(self, batch: dict[str, Any]) -> Tensor:
        """Add the gradient of a batch, or of some groups of it; returns its loss."""
        begin = time.perf_counter()
        if self.rollouts is not None and self.rollouts.old_log_probs is None:
            self.rollouts.check_version(self.state.global_step, self.run_config.staleness)
        total = self.gradient(batch)
        self._note_distance()
        wait_for_device()
        self.timeline.add("train", begin)
        self.record.seconds["backward"] += time.perf_counter() - begin
        return total

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
        self._metrics["train"].update({name: [value] for name, value in averages.items()})  # a tracker gets the same
        if "grad_norm" in logs and self.length is not None:
            self.record.values |= self._measured_step(self.length, self.mismatch or 0.0)
        record = self._step_metrics(logs, averages) if "grad_norm" in logs else None
        tracked = numbers(record) if record is not None and self.run_config.report_to != "none" else {}
        super().log(logs | tracked, start_time)
        if record is not None:
            tracker, callbacks = self.run_config.report_to, self.callback_handler.callbacks
            log_rollouts(tracker, callbacks, self.state.global_step, self.record.rollouts)
            line, record["idle"] = self.timeline.close(self.state.global_step)
            self.folder.append("timeline", line)
            self.record = StepRecord(self.timeline)
            if self.on_step(record):
                self.control.should_training_stop = True

    def _measured_step(self, length: StepLength, noise: float) -> dict[str, float]:
        return length.measure(self._log_probs_of, noise)

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
        for part in (self.dynamic, self.ahead):
            if part is not None:
                part.save(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written under a temporary name: a killed run never leaves half a checkpoint behind."""
        shutil.rmtree(self.folder.partial, ignore_errors=True)
        Trainer._save_checkpoint(self, model, trial)  # TRL's would also write a model card every step
        self.folder.publish_checkpoint(self.state.global_step)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder.partial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_checkpoint(resume_from_checkpoint, self.model)
        for part in (self.dynamic, self.ahead):
            if part is not None:
                part.load(Path(resume_from_checkpoint))
