"""GRPO on the shared vector: TRL's trainer with our rollout engine, our log-probabilities and our checkpoints.

What stays TRL's: advantages, importance-sampling correction, every loss, the optimizer loop. What is replaced, and why:
- generation, so that only `v` travels and completions are graded as they finish;
- log-probabilities, computed in token-budget batches without padding or kept logits (`pipeline/logprobs.py`);
- the training step, which cuts the batch into such batches and leaves out rows without an advantage;
- checkpoints, which hold `v` and appear whole.
Left out: several processes. One process drives one engine.
"""

from __future__ import annotations

import inspect
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, Trainer
from trl import GRPOConfig, GRPOTrainer

from adapters import load_checkpoint, save_checkpoint
from pipeline.config import RunConfig
from pipeline.grading import StreamingGrader, verdict_metrics
from pipeline.logprobs import completion_log_probs, kl_k3, packed_rows, token_budget_batches
from pipeline.prompts import code_messages
from pipeline.rollout import Completion, RefreshReport, RolloutEngine, Sampling
from pipeline.run_folder import RunFolder
from rewards.problem import Problem
from rewards.scoring import score

# Loss types whose value is a sum over rows divided by a constant of the whole batch need no weight when the batch is
# cut; those that average over rows are weighted by the share of rows, and bnpo by the share of tokens.
SUMMED_LOSSES = ("dapo", "cispo")
KL_ROWS = 64  # rows on which the KL to the base is estimated when the loss does not need it


def grpo_arguments(config: RunConfig, output_dir: Path) -> GRPOConfig:
    """TRL's arguments for one optimizer step per batch of prompts_per_step × num_generations completions."""
    return GRPOConfig(
        output_dir=str(output_dir),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=config.num_generations,
        num_iterations=config.num_iterations,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        learning_rate=config.lr,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        loss_type=config.loss_type,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        beta=0.0,  # set after construction: TRL would load a second model; ours is this one with v switched off
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=2.0,
        bf16=False,  # no autocast: the model has its dtype and v stays float32
        gradient_checkpointing=torch.cuda.is_available(),
        shuffle_dataset=False,  # the order of the problems is part of the dataset
        save_strategy="steps",
        save_steps=config.num_iterations,
        logging_steps=1,
        report_to=config.report_to,
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def training_rows(problems: list[Problem], config: RunConfig) -> Dataset:
    """One row a prompt for the whole run, in the order of training: every pass over the problems is shuffled anew."""
    assert config.steps is not None and config.prompts_per_step is not None
    rollout_steps = -(-config.steps // config.num_iterations)
    wanted = rollout_steps * config.prompts_per_step
    generator = torch.Generator().manual_seed(config.seed)
    order: list[int] = []
    while len(order) < wanted:
        order += torch.randperm(len(problems), generator=generator).tolist()
    order = order[:wanted]
    return Dataset.from_dict({"prompt": [code_messages(problems[i]) for i in order], "problem": order})


@dataclass
class StepRecord:
    """What one step measured, filled while it runs; `seconds` per phase."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    values: dict[str, Any] = field(default_factory=dict)


class TinyLoRATrainer(GRPOTrainer):
    """Trains `model.tinylora.v`. `on_step(record)` receives one flat record per optimizer step."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        engine: RolloutEngine,
        grader: StreamingGrader,
        problems: list[Problem],
        config: RunConfig,
        folder: RunFolder,
        on_step: Callable[[dict[str, Any]], None],
    ) -> None:
        _check_trl()
        self.run_config = config
        self.engine = engine
        self.grader = grader
        self.problems = problems
        self.folder = folder
        self.on_step = on_step
        self.record = StepRecord()
        model._hf_peft_config_loaded = (
            True  # transformers refuses to train a quantised model that has no adapter of its own
        )
        super().__init__(
            model=model,
            reward_funcs=[self.collect_rewards],
            args=grpo_arguments(config, folder.path),
            train_dataset=training_rows(problems, config),
            processing_class=tokenizer,
        )
        model._hf_peft_config_loaded = False
        self.remove_callback(PrinterCallback)
        self.bank = model.tinylora
        self.bank.v.data = self.bank.v.data.float()  # TRL casts trainable parameters of a 4-bit model to bf16
        self.use_vllm = True  # both engines return log-probabilities: correct for the mismatch
        self._last_loaded_step = -1
        self.loss_beta = config.beta
        self.base_norm = float(torch.stack([_norm(layer) for layer in _layers(model)]).square().sum().sqrt())

    # rollouts and rewards

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, *_: Any, **__: Any
    ) -> tuple[list[list[int]], list[list[float]]]:
        if self.state.global_step != self._last_loaded_step:
            report: RefreshReport = self.engine.refresh(self.bank.v.detach())
            self.record.seconds["refresh"] += report.seconds
            self.record.values["kept_share"] = report.kept
            self._last_loaded_step = self.state.global_step
        start = time.perf_counter()
        self.grader.begin([self.problems[row["problem"]] for row in self._rollout_rows])
        sampling = Sampling(
            max_tokens=self.max_completion_length,
            temperature=self.temperature,
            seed=self.args.seed * 1_000_003 + self.state.global_step,
        )
        completions = self.engine.generate(prompt_ids, sampling, self._submit)
        seconds = time.perf_counter() - start
        self.record.seconds["generate"] += seconds
        tokens = sum(len(completion.token_ids) for completion in completions)
        self.record.values |= {"tokens": tokens, "tokens_per_second": tokens / seconds}
        return [c.token_ids for c in completions], [c.log_probs for c in completions]

    def _submit(self, row: int, completion: Completion) -> None:
        self.grader.submit(row, self._tokenizer.decode(completion.token_ids, skip_special_tokens=True))

    def collect_rewards(self, prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
        """The reward function TRL calls: waits for the verdicts of the batch that was just generated."""
        verdicts = self.grader.collect()
        self.record.seconds["grade_wait"] += self.grader.times.wait
        self.record.values |= {"grading_hidden": self.grader.times.hidden} | verdict_metrics(verdicts)
        self._verdicts = verdicts
        return [score(v, self.run_config.reward, self.run_config.compile_credit) for v in verdicts]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rollout_rows = inputs
        output = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"]
        mismatch = output["old_per_token_logps"] - output["sampling_per_token_logps"]
        self.record.values["mismatch"] = kl_k3(mismatch, mask)
        rows = slice(None) if self.loss_beta else slice(0, KL_ROWS)
        with torch.no_grad(), self.bank.disabled():
            base, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)[rows],
                torch.cat([output["prompt_mask"], mask], dim=1)[rows],
                output["completion_ids"].shape[1],
            )
        self.record.values["kl_base"] = kl_k3(base - output["old_per_token_logps"][rows], mask[rows])
        if self.loss_beta:
            output["ref_per_token_logps"] = base
        self._write_rollouts(output)
        return output

    def _write_rollouts(self, output: dict[str, Any]) -> None:
        texts = list(self._logs["completion"])[-len(self._verdicts) :]
        self.folder.write_rollouts(
            f"step-{self.state.global_step + 1:05d}",
            (
                {
                    "step": self.state.global_step + 1,
                    "problem": self.problems[row["problem"]].id,
                    "completion": text[0]["content"],
                    "verdict": verdict.status.name,
                    "passed": verdict.passed,
                    "total": verdict.total,
                    "reward": score(verdict, self.run_config.reward, self.run_config.compile_credit),
                    "advantage": advantage,
                    "tokens": tokens,
                }
                for row, text, verdict, advantage, tokens in zip(
                    self._rollout_rows,
                    texts,
                    self._verdicts,
                    output["advantages"].tolist(),
                    output["completion_mask"].sum(dim=1).tolist(),
                    strict=True,
                )
            ),
        )

    # the training pass

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        """(B, logits_to_keep) log-probabilities and entropies; with gradients, the rows are one batch of the budget."""
        start = time.perf_counter()
        split = input_ids.shape[1] - logits_to_keep
        rows, prompts, completions = packed_rows(
            input_ids[:, :split], attention_mask[:, :split], input_ids[:, split:], attention_mask[:, split:]
        )
        if torch.is_grad_enabled():
            return (*completion_log_probs(model, rows, prompts, completions, logits_to_keep, self.temperature), None)
        log_probs = torch.zeros(rows.shape[0], logits_to_keep, device=rows.device)
        entropies = torch.zeros_like(log_probs)
        lengths = prompts + completions
        for part in token_budget_batches(lengths, self.run_config.micro_batch_tokens):
            width = int(lengths[part].max())
            log_probs[part], entropies[part] = completion_log_probs(
                model, rows[part, :width], prompts[part], completions[part], logits_to_keep, self.temperature
            )
        self.record.seconds["log_probs"] += time.perf_counter() - start
        return log_probs, entropies, None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        start = time.perf_counter()
        batch = self._prepare_inputs(inputs)
        begin = time.perf_counter()
        self.beta = self.loss_beta
        total = torch.zeros((), device=self.accelerator.device)
        for part, weight in self._micro_batches(batch):
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, part) * weight
            self.accelerator.backward(loss)
            total += loss.detach()
        self.beta = 0.0
        self._step += 1
        self.record.seconds["backward"] += time.perf_counter() - begin
        self.record.seconds["step"] += time.perf_counter() - start
        return total

    def _micro_batches(self, batch: dict[str, Any]) -> list[tuple[dict[str, Any], float]]:
        """Parts of the batch of similar length, each with the weight of its loss. Rows that cannot move `v` are left
        out."""
        lengths = batch["prompt_mask"].sum(dim=1) + batch["completion_mask"].sum(dim=1)
        moving = torch.ones_like(lengths, dtype=torch.bool) if self.loss_beta else batch["advantages"] != 0
        self.record.values["rows_trained"] = float(moving.float().mean())
        chosen = moving.nonzero().squeeze(1)
        count, tokens = len(lengths), int(batch["completion_mask"].sum())
        parts = []
        for index in token_budget_batches(lengths[chosen], self.run_config.micro_batch_tokens):
            rows = chosen[index]
            part = {
                k: x[rows] if isinstance(x, Tensor) and x.dim() and len(x) == count else x for k, x in batch.items()
            }
            if self.loss_type in SUMMED_LOSSES:
                weight = 1.0
            elif self.loss_type == "bnpo":
                weight = int(part["completion_mask"].sum()) / tokens
            else:
                weight = len(rows) / count
            parts.append((part, weight))
        return parts

    # records and checkpoints

    @torch.no_grad()
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        averages = {name: sum(values) / len(values) for name, values in self._metrics["train"].items() if values}
        super().log(logs, start_time)
        if "grad_norm" in logs:
            self.on_step(self._step_metrics(logs, averages))
            self.record = StepRecord()

    def _step_metrics(self, logs: dict[str, float], averages: dict[str, float]) -> dict[str, Any]:
        delta = torch.stack([(layer.mixing() * _sigma(layer).unsqueeze(1)).norm() for layer in _layers(self.model)])
        seconds = {name: round(self.record.seconds[name], 4) for name in PHASES}
        seconds["train"] = round(seconds["log_probs"] + seconds["backward"], 4)
        return {
            "step": self.state.global_step,
            "reward": averages.get("reward"),
            "reward_std": averages.get("reward_std"),
            **self.record.values,
            "zero_variance_groups": averages.get("frac_reward_zero_std"),
            "entropy": averages.get("entropy"),
            "clip_ratio": averages.get("clip_ratio/region_mean"),
            "mean_length": averages.get("completions/mean_length"),
            "truncated": averages.get("completions/clipped_ratio"),
            "loss": logs.get("loss"),
            "grad_norm": float(logs["grad_norm"]),
            "lr": logs.get("learning_rate"),
            "v_norm": float(self.bank.v.norm()),
            "v": [round(x, 6) for x in self.bank.v.detach().flatten().tolist()],
            "delta_norm": float(delta.square().sum().sqrt()) / self.base_norm,
            "seconds": seconds,
        }

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(folder, self.model, self.run_config.model or "")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written under a temporary name: a killed run never leaves half a checkpoint behind."""
        shutil.rmtree(self.folder.partial, ignore_errors=True)
        Trainer._save_checkpoint(self, model, trial)  # TRL's would also write a model card every step
        self.folder.publish_checkpoint(self.state.global_step)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder.partial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_checkpoint(resume_from_checkpoint, self.model)


PHASES = ("generate", "grade_wait", "log_probs", "backward", "refresh", "step")


def _layers(model: Any) -> list[Any]:
    from adapters import adapted_layers

    return list(adapted_layers(model).values())


def _sigma(layer: Any) -> Tensor:
    return layer.left.float().norm(dim=0)


def _norm(layer: Any) -> Tensor:
    from adapters.factors import dense_weight

    return dense_weight(layer.base_layer).float().norm()


def _check_trl() -> None:
    """The hooks this class overrides are private: fail with a name, not with wrong gradients, when TRL changes them."""
    expected = {
        "_generate_single_turn": ["self", "prompt_ids", "images", "multimodal_fields", "num_generations"],
        "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
        "_generate_and_score_completions": ["self", "inputs"],
        "_compute_loss": ["self", "model", "inputs"],
        "_prepare_inputs": ["self", "generation_batch"],
    }
    for name, parameters in expected.items():
        found = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[: len(parameters)]
        if found != parameters:
            raise RuntimeError(f"TRL's GRPOTrainer.{name} changed ({found}); this project is written for trl 1.15")
