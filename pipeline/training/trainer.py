"""GRPO on the shared vector: TRL's trainer with our rollout engine, our log-probabilities and our checkpoints.

What stays TRL's: advantages, importance-sampling correction, every loss, the optimizer loop. What is replaced, and why:
- generation, so that only `v` travels and completions are graded as they finish;
- log-probabilities, computed in token-budget batches without padding or kept logits (`pipeline/training/logprobs.py`);
- the training step, which cuts the batch into such batches and leaves out rows without an advantage;
- checkpoints, which hold `v` and appear whole.
Left out: several processes. One process drives one engine.
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
from transformers import PrinterCallback, Trainer
from trl import GRPOTrainer

from adapters import load_checkpoint, save_checkpoint
from adapters.base import dense_weight
from pipeline.config import RunConfig, parse_scales
from pipeline.policy.loading import Policy
from pipeline.report.trackers import log_rollouts, numbers
from pipeline.rollout import Completion, Sampling
from pipeline.rollout.sampling_support import Truncation
from pipeline.rollout.streaming import StreamingGrader, verdict_metrics
from pipeline.run_folder import PHASES, RunFolder, rollout_records
from pipeline.tasks import Reward
from pipeline.tasks.problem_sets import advantage_scale
from pipeline.training.collapse import check_mismatch
from pipeline.training.device import peak_memory, wait_for_device
from pipeline.training.dynamic_rollouts import DynamicRollouts
from pipeline.training.entropy_bonus import entropy_loss
from pipeline.training.grpo import RATIO_CAP, check_trl, grpo_arguments, training_rows, training_task
from pipeline.training.kl_step import StepLength
from pipeline.training.logprobs import (
    completion_log_probs,
    kl_k3,
    log_probs_without_gradient,
    packed_rows,
    unpadded_rows,
)
from pipeline.training.microbatch import micro_batches, spread_rows, without_equal_groups
from pipeline.training.sampler import PolicySampler, StepRecord
from pipeline.training.warmup import with_warm_up
from rewards.problem import Problem
from rewards.verdict import Status, Verdict

KL_ROWS = 32  # rows on which the KL to the base is estimated when the loss does not need it


class TinyLoRATrainer(GRPOTrainer):
    """Trains `model.tinylora.v`. `on_step(record)` receives one flat record per optimizer step; true ends the
    run once that step's checkpoint is written."""

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
        check_trl()
        model, memory = policy.model, policy.memory
        self.run_config = config
        self.micro_batch_tokens = memory.micro_batch_tokens if memory else config.micro_batch_tokens
        self.grader = grader
        self.problems = problems
        self.folder = folder
        self.on_step = on_step
        self.record = StepRecord()
        self.task = training_task(config)
        self.truncation = Truncation(config.top_k, config.top_p)
        self.dynamic: DynamicRollouts | None = None
        self.scales = parse_scales(config.advantage_scale)
        self._verdicts: list[Verdict] = []
        self._rollout_rows: list[dict[str, Any]] = []
        self._kept_rows: list[int] | None = None  # of the grader's; None for all
        self._scores: list[dict[str, float | None]] = []
        self._on_policy = False
        self.length: StepLength | None = None  # with `--lr auto`
        self._computed: tuple[Tensor, Tensor] | None = None
        self._mismatches: list[Tensor] = []
        self._one_policy = False  # whether engine and trainer were seen to be one
        model._hf_peft_config_loaded = True  # transformers refuses to train a quantised model without its adapters
        super().__init__(
            model=model,
            reward_funcs=[self._reward_function(reward) for reward in self.task.rewards],
            args=grpo_arguments(config, folder.path, checkpointing=bool(memory and memory.gradient_checkpointing)),
            train_dataset=training_rows(problems, config, origin),
            processing_class=policy.tokenizer,
        )
        model._hf_peft_config_loaded = False
        if config.dynamic_sampling:
            ends = [*self.eos_token_ids, policy.tokenizer.pad_token_id]
            self.dynamic = DynamicRollouts(problems, config, self.task, grader, self._text, ends, origin)
        self.remove_callback(PrinterCallback)
        self.bank = model.tinylora
        self.bank.v.data = self.bank.v.data.float()  # TRL casts trainable parameters of a 4-bit model to bf16
        self.use_vllm = True  # both engines return log-probabilities: correct for the mismatch
        sampling = Sampling(self.max_completion_length, self.temperature, config.seed, self.truncation)
        self.sampler = PolicySampler(policy.engine, self.bank, grader, sampling, self._text)
        self.loss_beta = config.beta
        norms = [dense_weight(layer.base_layer).float().norm() for layer in self.bank.layers]
        self.base_norm = float(torch.stack(norms).norm())
        self.sigma = torch.stack([layer.left.norm(dim=0) for layer in self.bank.layers])[..., None]  # (modules, r, 1)

    # rollouts and rewards

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, *_: Any, **__: Any
    ) -> tuple[list[list[int]], list[list[float]]]:
        if self.dynamic is None:
            self.grader.begin([self.problems[row["problem"]] for row in self._rollout_rows])
            self._completions = self._sample(prompt_ids)
        self._compare_with_base(prompt_ids, self._completions)
        return [c.token_ids for c in self._completions], [c.log_probs for c in self._completions]

    def _sample(self, prompt_ids: list[list[int]], *stream: Any) -> list[Completion]:
        """A generation of the policy as it is; `stream` as of `PolicySampler.sample`."""
        return self.sampler.sample(self.state.global_step, self.record, prompt_ids, *stream)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, Any]:
        """TRL's, but once for every group: its rows follow one another and share their prompt."""
        token_ids, images, fields = super()._tokenize_prompts(prompts[:: self.num_generations])
        return [ids for ids in token_ids for _ in range(self.num_generations)], images, fields

    def _compare_with_base(self, prompt_ids: list[list[int]], completions: list[Completion]) -> None:
        """KL to the base, on all rows where the loss has a KL term, else on rows spread over all groups; done here
        because the last programs are still being graded."""
        chosen = spread_rows(len(completions), len(completions) if self.loss_beta else KL_ROWS)
        sampled = [completions[row].token_ids for row in chosen]
        rows, prompts, lengths = unpadded_rows([prompt_ids[row] for row in chosen], sampled, self.accelerator.device)
        width = max(len(completion.token_ids) for completion in completions)
        with self.bank.disabled():
            base, _ = self._log_probs_of_rows(rows, prompts, lengths, width)
        mask = torch.arange(width, device=rows.device) < lengths.unsqueeze(1)
        self.record.values["kl_base"] = kl_k3(base - self._sampled_log_probs(width)[chosen], mask)
        self._base_log_probs = base

    def _text(self, completion: Completion) -> str:
        return self._tokenizer.decode(completion.token_ids, skip_special_tokens=True)

    def _reward_function(self, reward: Reward) -> Callable[..., list[float | None]]:
        """The reward as a function that TRL can call."""
        if reward.of_text is not None:
            return reward.of_text  # type: ignore[return-value]
        judge = reward.of_verdict
        assert judge is not None

        def of_verdicts(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
            return [judge(verdict, self.run_config) for verdict in self._verdicts]

        of_verdicts.__name__ = reward.name
        return of_verdicts

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """(B, rewards) of the batch that was just generated; waits for its verdicts first."""
        self._verdicts = self.grader.collect(self._kept_rows)
        self.record.seconds["grade_wait"] += self.grader.times.wait
        self.record.values["grading_hidden"] = self.grader.times.hidden
        if self.dynamic is None:  # else of all that were judged
            self.record.values |= verdict_metrics(self._verdicts)
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards[torch.tensor([verdict.status is Status.NO_VERDICT for verdict in self._verdicts])] = torch.nan
        names = [reward.name for reward in self.task.rewards]
        self._scores = [
            {name: None if value != value else value for name, value in zip(names, row, strict=True)}
            for row in rewards.tolist()
        ]
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.dynamic is not None:  # the rows that the batch is made of take the place of TRL's
            drawn = self.dynamic.draw(lambda prompts: self._tokenize_prompts(prompts)[0], self._sample)
            inputs, self._completions, self._kept_rows = drawn.rows, drawn.completions, drawn.graded_rows
            self.record.values |= drawn.metrics
        self._rollout_rows = inputs
        self._on_policy = self.num_iterations == 1
        output = super()._generate_and_score_completions(inputs)
        rows = torch.arange(len(inputs), device=output["advantages"].device)
        output["group"] = rows // self.num_generations  # TRL shuffles the rows
        output["advantages"] = without_equal_groups(output["advantages"], self._totals(), self.num_generations)
        silent = (output["advantages"].view(-1, self.num_generations) == 0).all(dim=1)
        self.record.values["zero_variance_groups"] = float(silent.float().mean())
        if self.scales:  # here and not in the rewards: the group's normalisation would take any factor out again
            factors = [advantage_scale(self.problems[row["problem"]], self.scales) for row in inputs]
            output["advantages"] = output["advantages"] * output["advantages"].new_tensor(factors)
        mask, sampled = output["completion_mask"], output["sampling_per_token_logps"]
        if self._on_policy:  # the training pass itself yields these, on the rows that it trains
            for name in [name for name in self._metrics["train"] if name.startswith("sampling/")]:
                del self._metrics["train"][name]
            del output["old_per_token_logps"], output["importance_sampling_ratio"]
            self._on_policy = False
        else:
            self._mismatches = [(output["old_per_token_logps"] - sampled)[mask.bool()]]
        if self.loss_beta:
            output["ref_per_token_logps"] = self._base_log_probs
        self._write_rollouts(output)
        return output

    def _totals(self) -> list[float | None]:
        """The weighted reward of every row of the batch at hand; None where it has none."""
        return self.task.totals({name: [row[name] for row in self._scores] for name in self._scores[0]})

    def _write_rollouts(self, output: dict[str, Any]) -> None:
        self._rollouts = rollout_records(
            self.state.global_step + 1,
            [self.problems[row["problem"]].id for row in self._rollout_rows],
            [text[0]["content"] for text in list(self._logs["completion"])[-len(self._verdicts) :]],
            self._verdicts,
            self._totals(),
            self._scores,
            output["advantages"].tolist(),
            [len(completion.token_ids) for completion in self._completions],
        )
        self.folder.write_rollouts(f"step-{self.state.global_step + 1:05d}", self._rollouts)

    # the training pass

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        """(B, logits_to_keep) log-probabilities and entropies; with gradients, the rows are one batch of the budget."""
        if self._on_policy:  # TRL asks for the old log-probabilities: they are those of the training pass to come
            return self._sampled_log_probs(logits_to_keep), torch.empty(0), None
        if self._computed is not None:
            return (*self._computed, None)
        split = input_ids.shape[1] - logits_to_keep
        rows, prompts, completions = packed_rows(
            input_ids[:, :split], attention_mask[:, :split], input_ids[:, split:], attention_mask[:, split:]
        )
        if torch.is_grad_enabled():
            log_probs, entropies = completion_log_probs(
                model,
                rows,
                prompts,
                completions,
                logits_to_keep,
                self.temperature,
                self.truncation,
                self.run_config.entropy_bonus > 0,
            )
            self._entropies = entropies
            if self.length is not None:
                self.length.watch(log_probs)
            return log_probs, entropies, None
        return (*self._log_probs_of_rows(rows, prompts, completions, logits_to_keep), None)

    def _log_probs_of_rows(
        self, rows: Tensor, prompts: Tensor, completions: Tensor, width: int
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (B, width) of the model as it is, without a gradient."""
        start = time.perf_counter()
        log_probs, entropies = log_probs_without_gradient(
            self.model, rows, prompts, completions, width, self.temperature, self.micro_batch_tokens, self.truncation
        )
        wait_for_device()
        self.record.seconds["log_probs"] += time.perf_counter() - start
        return log_probs, entropies

    def _sampled_log_probs(self, width: int) -> Tensor:
        """The engine's log-probabilities of the completions at hand, (B, width), zero beyond a row's end."""
        rows = torch.zeros(len(self._completions), width)
        for row, completion in zip(rows, self._completions, strict=True):
            row[: len(completion.log_probs)] = torch.tensor(completion.log_probs)
        return rows.to(self.accelerator.device)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss. On-policy, old and new log-probabilities are the same numbers: one forward pass serves both."""
        if "old_per_token_logps" in inputs:
            return super()._compute_loss(model, inputs)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        width = inputs["completion_ids"].shape[1]
        log_probs, entropies, _ = self._get_per_token_logps_and_entropies(model, ids, mask, width)
        old = log_probs.detach()
        difference = old - inputs["sampling_per_token_logps"]
        self._mismatches.append(difference[inputs["completion_mask"].bool()])
        self._computed = (log_probs, entropies)
        if self.length is not None:
            self.length.trained(inputs, old)
        loss = super()._compute_loss(
            model,
            inputs | {"old_per_token_logps": old, "importance_sampling_ratio": difference.exp().clamp(max=RATIO_CAP)},
        )
        self._computed = None
        return loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        start = time.perf_counter()
        batch = self._prepare_inputs(inputs)
        begin = time.perf_counter()
        self.beta = self.loss_beta
        tokens, bonus = int(batch["completion_mask"].sum()), self.run_config.entropy_bonus
        total = torch.zeros((), device=self.accelerator.device)
        for part, weight in self._micro_batches(batch):
            with self.length.rows(part) if self.length else nullcontext(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, part) * weight
                self.accelerator.backward(loss, retain_graph=bonus > 0)
                total += loss.detach()
                if bonus:
                    if self.length:
                        self.length.take_scores()
                    loss = entropy_loss(self._entropies, part["completion_mask"], tokens, bonus)
                    self.accelerator.backward(loss)
                    total += loss.detach()
        self.beta = 0.0
        if self._mismatches:
            mismatch = torch.cat(self._mismatches)
            self.record.values["mismatch"] = kl_k3(mismatch, torch.ones_like(mismatch))
            self._mismatches = []
            if not self._one_policy:
                check_mismatch(self.record.values["mismatch"], self.run_config.model or "")
                self._one_policy = True
        self._step += 1
        wait_for_device()
        self.record.seconds["backward"] += time.perf_counter() - begin
        self.record.seconds["step"] += time.perf_counter() - start
        return total

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
        optimizer.register_step_post_hook(lambda *_: torch.autograd.graph.increment_version(self.bank.v))
        return optimizer

    def create_scheduler(self, *arguments: Any, **options: Any) -> Any:
        """TRL's, with the warm-up of this project."""
        scheduler = super().create_scheduler(*arguments, **options)
        if self.run_config.warmup_steps:
            self.lr_scheduler = scheduler = with_warm_up(scheduler, self.run_config.warmup_steps)
        return scheduler

    def _micro_batches(self, batch: dict[str, Any]) -> list[tuple[dict[str, Any], float]]:
        every_row = self.loss_beta != 0 or self.run_config.entropy_bonus != 0
        parts, share = micro_batches(batch, self.micro_batch_tokens, self.loss_type, every_row=every_row)
        self.record.values["rows_trained"] = share
        return parts

    # records and checkpoints

    @torch.no_grad()
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._metrics["train"].pop("entropy", None)  # of trained rows only; the record's is of all
        averages = {name: sum(values) / len(values) for name, values in self._metrics["train"].items() if values}
        if "grad_norm" in logs and self.length is not None:
            self.record.values |= self.length.measure(self._log_probs_of_rows, self.record.values.get("mismatch", 0.0))
        record = self._step_metrics(logs, averages) if "grad_norm" in logs else None
        tracked = numbers(record) if record is not None and self.run_config.report_to != "none" else {}
        super().log(logs | tracked, start_time)
        if record is not None:
            log_rollouts(
                self.run_config.report_to, self.callback_handler.callbacks, self.state.global_step, self._rollouts
            )
            self._rollouts = []
            self.record = StepRecord()
            if self.on_step(record):
                self.control.should_training_stop = True

    def _step_metrics(self, logs: dict[str, float], averages: dict[str, float]) -> dict[str, Any]:
        seconds = {name: round(self.record.seconds[name], 4) for name in (*PHASES, "step")}
        seconds["train"] = round(seconds["log_probs"] + seconds["backward"], 4)
        return {
            "step": self.state.global_step,
            "reward": averages.get("reward"),
            "reward_std": averages.get("reward_std"),
            "rewards": {reward.name: averages.get(f"rewards/{reward.name}/mean") for reward in self.task.rewards},
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
