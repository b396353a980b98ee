"""Supervised warm-up before RL: a model learns the form of the answers from worked ones.

TRL's `SFTTrainer` on a model that Unsloth loads: QLoRA (an adapter over NF4 weights) on a GPU, LoRA or all weights on
a CPU. The result is an ordinary model folder, the adapter merged into the unquantised weights, that `scripts/train.py
--model` takes."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from pipeline.config import ConfigError, RunConfig, Settings, resolved
from pipeline.config.warm_up import WarmUp
from pipeline.environment import has_gpu
from pipeline.launch import check_processes
from pipeline.policy.models import (
    ModelChoice,
    check_length,
    choose_model,
    compute_dtype,
    import_libraries,
    made_ready,
    quiet_libraries,
    transformers_config,
)
from pipeline.progress import Bar
from pipeline.run_folder import check_folder
from pipeline.tasks import Task, task_of, with_dataset
from pipeline.tasks.problem_sets import training_part
from pipeline.versions import warn_of_untested
from rewards.problem import Problem
from storage.files import write_json

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def warm_up(settings: WarmUp) -> Path:
    """Train, merge and save; returns the model's folder, which appears whole or not at all."""
    start = time.perf_counter()
    check_processes()
    final = Path(settings.output_dir)
    check_folder(final.parent, f"--output-dir {final}")
    choice = choose_model(settings.model, settings.hub)
    shared = {name: getattr(settings, name) for name in ("task", "template", "system_prompt", "dataset")}
    asked = with_dataset(Settings(model=choice.name, **shared), starter=choice.is_starter)
    config = resolved(asked, starter=choice.is_starter, gpu=has_gpu())
    task = task_of(config)
    problems = worked_problems(config, task, settings)
    warn_of_untested()
    print(f"model: {choice.name} ({choice.reason})", flush=True)
    choice = made_ready(choice)
    model, tokenizer = load(choice, settings)
    rows, dropped = training_rows(problems, task, tokenizer, settings.max_length)
    print(f"examples: {len(rows)}" + (f"; {dropped} dropped, longer than --max-length" if dropped else ""), flush=True)
    folder = final.with_name(f".{final.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    losses = fit(model, tokenizer, rows, settings, folder)
    save(model, tokenizer, choice, settings, folder)
    record = {"settings": asdict(settings), "base": choice.name, "examples": len(rows), "dropped": dropped}
    record |= {"first_loss": losses[0], "last_loss": losses[-1], "seconds": round(time.perf_counter() - start, 1)}
    write_json(folder / "sft.json", record)
    folder.rename(final)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last; train on it with --model {final}")
    return final


def worked_problems(config: RunConfig, task: Task, settings: WarmUp) -> list[Problem]:
    """Problems with a solution to imitate, none of which `train.py` holds out. Raises `ConfigError` where the data set
    has none."""
    name = config.dataset or ""
    if task.generator and name == task.generator.name:
        return task.generator.worked(settings.max_samples, settings.seed)
    problems = [p for part in config.datasets for p in training_part(part, config, task) if p.solution]
    if not problems:
        raise ConfigError(f"--dataset {name}: no problem but held-out ones has a solution, so none can be imitated")
    Random(settings.seed).shuffle(problems)
    return problems[: settings.max_samples]


def training_rows(problems: list[Problem], task: Task, tokenizer: Any, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Prompt and completion as chat messages, and how many examples were longer than `limit` and left out.

    Raises `ConfigError` where none is left.
    """
    rows = [
        {
            "prompt": task.prompt.messages(problem),
            "completion": [{"role": "assistant", "content": task.target(problem)}],
        }
        for problem in problems
    ]
    ids = tokenizer.apply_chat_template([r["prompt"] + r["completion"] for r in rows], return_dict=True)["input_ids"]
    kept = [row for row, tokens in zip(rows, ids, strict=True) if len(tokens) <= limit]
    if not kept:
        raise ConfigError(f"--max-length {limit}: every example is longer")
    return kept, len(rows) - len(kept)


def _quantised(settings: WarmUp) -> bool:
    return settings.method == "lora" and (settings.quant or ("nf4" if has_gpu() else "none")) == "nf4"


def load(choice: ModelChoice, settings: WarmUp) -> tuple[Any, Any]:
    """The model with what is to be trained, and its tokenizer."""
    import_libraries()
    import torch
    from unsloth import FastLanguageModel

    longest, full = settings.max_length, settings.method == "full"
    check_length(f"--max-length {longest}", longest, choice, transformers_config(choice).to_dict())
    with quiet_libraries():
        model, tokenizer = FastLanguageModel.from_pretrained(
            choice.location,
            dtype=torch.float32 if full else getattr(torch, compute_dtype()),  # 16 bits round most of a step away
            load_in_4bit=_quantised(settings),
            full_finetuning=full,
            max_seq_length=settings.max_length,
            use_exact_model_name=True,
        )
        if settings.method == "lora":
            model = FastLanguageModel.get_peft_model(
                model,
                r=settings.lora_rank,
                lora_alpha=settings.lora_rank,
                target_modules=TARGETS,
                use_gradient_checkpointing="unsloth" if has_gpu() else False,
                random_state=settings.seed,
            )
    return model, tokenizer


def fit(model: Any, tokenizer: Any, rows: list[dict[str, Any]], settings: WarmUp, folder: Path) -> list[float]:
    """Run TRL's trainer; returns the loss of every step. The loss is that of the completions alone."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    losses: list[float] = []
    bar = Bar("warm-up", settings.steps, "steps")

    class Losses(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))
                bar.done(note=f"loss {losses[-1]:.3f}")

    arguments = SFTConfig(
        output_dir=str(folder / "trainer"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=max(1, settings.steps // 20),
        max_length=settings.max_length,
        completion_only_loss=True,
        packing=False,
        bf16=has_gpu(),
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
        use_cpu=not has_gpu(),
        dataloader_pin_memory=has_gpu(),
        dataset_num_proc=None,
    )
    with quiet_libraries():
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Losses()],
        )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    bar.close()
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    return losses


def save(model: Any, tokenizer: Any, choice: ModelChoice, settings: WarmUp, folder: Path) -> None:
    """Write an ordinary model folder. An adapter is merged into the weights as published, not into quantised ones."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    stored = AutoConfig.from_pretrained(choice.location).dtype or torch.bfloat16
    if settings.method == "lora":
        from peft import PeftModel

        adapter = folder / "adapter"
        model.save_pretrained(adapter)
        base = AutoModelForCausalLM.from_pretrained(choice.location, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    model.to(stored).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
