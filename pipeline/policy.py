"""A loaded policy with everything around it: model, adapter, engine and graders, in the order in which they must
start."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import ConfigError, RunConfig
from pipeline.environment import has_gpu
from pipeline.models import ModelChoice, compute_dtype, eos_token_ids, load_model
from rewards.pool import GraderPool

if TYPE_CHECKING:
    from pipeline.rollout import RolloutEngine

REPORTER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
GPU_SHARE = 0.45  # of the card for vLLM when no budget is given; the trainer has the rest
TRANSFORMERS_BATCH = 64


def check_packages(config: RunConfig) -> None:
    """Raise `ConfigError` for an engine or tracker that is asked for but not installed."""
    if config.vllm and importlib.util.find_spec("vllm") is None:
        raise ConfigError("--vllm: vLLM is not installed here; run `make setup`, or generate with --no-vllm")
    package = REPORTER_PACKAGES.get(config.report_to)
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(f"--report-to {config.report_to}: the package is not installed; run `pip install {package}`")


def start_graders(config: RunConfig) -> GraderPool:
    """The pool, to be started before a model is loaded: graders are spawned, and must not inherit a GPU."""
    return GraderPool(workers=config.grader_workers, unsafe=config.unsafe_grader)


@dataclass
class Policy:
    """The adapted model, its tokenizer and the engine that samples from it."""

    model: Any
    tokenizer: Any
    engine: RolloutEngine

    def close(self) -> None:
        self.engine.close()


def load_policy(choice: ModelChoice, config: RunConfig) -> Policy:
    """Load and adapt the model, then start the engine on the same weights."""
    model, tokenizer = load_model(choice, config)
    ends = eos_token_ids(model, tokenizer)
    if not config.vllm:
        from pipeline.rollout.transformers_engine import TransformersEngine

        return Policy(
            model,
            tokenizer,
            TransformersEngine(
                model, eos_token_ids=ends, pad_token_id=tokenizer.pad_token_id, batch_size=TRANSFORMERS_BATCH
            ),
        )
    from pipeline.models import quiet_libraries
    from pipeline.rollout.vllm_engine import VLLMEngine

    with quiet_libraries():
        engine = VLLMEngine(
            choice.location,
            model.tinylora,
            quant=config.quant or "none",
            dtype=compute_dtype(),
            max_model_len=config.max_length,
            eos_token_ids=ends,
            rounding=config.rounding,  # type: ignore[arg-type]
            gpu_memory_utilization=_gpu_share(config.gpu_memory),
            max_num_seqs=256,
            seed=config.seed,
        )
    return Policy(model, tokenizer, engine)


def _gpu_share(budget: float | None) -> float:
    """vLLM's share of the card when trainer and engine together may use `budget` GB."""
    if budget is None or not has_gpu():
        return GPU_SHARE
    import torch

    total = torch.cuda.get_device_properties(0).total_memory / 1e9
    return min(GPU_SHARE, GPU_SHARE * budget / total)


def parameter_table(choice: ModelChoice, config: RunConfig) -> Sequence[tuple[str, str]]:
    """What would be trained and what stays frozen, from the architecture alone: no weights are loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from adapters.config import PROJECTIONS, TinyLoRAConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(choice.location))
    adapter = TinyLoRAConfig(u=config.u, rank=config.rank, groups=config.groups, seed=config.seed)
    modules = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in PROJECTIONS]
    if adapter.groups > len(modules):
        raise ConfigError(f"--groups {adapter.groups}: the model has {len(modules)} modules; use at most that many")
    frozen = sum(parameter.numel() for parameter in model.parameters())
    scalars = adapter.groups * adapter.u
    return [
        (
            "trainable  tinylora.v",
            f"{scalars:,} float32 scalars, ({adapter.groups}, {adapter.u}), {4 * scalars:,} bytes",
        ),
        ("frozen     base model", f"{frozen:,} parameters, {config.quant}"),
        ("adapted    modules", f"{len(modules)} projections of rank {adapter.rank}, in {adapter.groups} group(s)"),
        ("share      trainable", f"{scalars / frozen:.2e}"),
    ]
