"""A loaded policy with everything around it: model, adapter, engine and graders, in the order in which they must
start."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapters.config import PROJECTIONS, TinyLoRAConfig
from pipeline.config import ConfigError, RunConfig
from pipeline.environment import has_gpu, machine_memory
from pipeline.policy.memory import TRANSFORMERS_ROWS, MemoryPlan, cpu_micro_batch, plan_memory
from pipeline.policy.models import (
    ModelChoice,
    check_length,
    compute_dtype,
    eos_token_ids,
    import_libraries,
    load_model,
    quiet_libraries,
    transformers_config,
)
from pipeline.rollout import RefreshReport, RolloutEngine
from pipeline.versions import plain_vllm


@dataclass
class Policy:
    """The adapted model, its tokenizer, the engine that samples from it, and on a GPU how memory is shared."""

    model: Any
    tokenizer: Any
    engine: RolloutEngine
    memory: MemoryPlan | None = None
    micro_batch_tokens: int | None = None  # of one training pass, as much as there is memory for; None: as configured
    version: int | None = None  # of the `v` that the engine serves: optimizer steps made before; None until one is

    def tokens_of_a_pass(self, config: RunConfig) -> int:
        """Tokens of one training pass at most."""
        return self.micro_batch_tokens or config.micro_batch_tokens

    def serve(self, version: int | None = None) -> RefreshReport:
        """Make the adapter's `v` as it is the engine's. version: the optimizer steps that made it, where they were
        counted. When what was made from `v` is stale is decided in `adapters/served.py`."""
        report = self.engine.refresh(self.model.tinylora.v.detach())
        self.version = version
        return report

    def close(self) -> None:
        """Give back the memory of model and engine; neither can be used any more."""
        self.engine.close()
        del self.model, self.engine
        gc.collect()  # their objects refer to each other
        if has_gpu():
            import torch

            torch.cuda.empty_cache()


def load_policy(choice: ModelChoice, config: RunConfig) -> Policy:
    """Load and adapt the model, then start the engine on the same weights."""
    memory = reserve_memory(choice, config)
    if memory and memory.reason:
        print(memory.reason, flush=True)
    import_libraries()  # not below: they keep frames of their first import, and with these whatever was loaded there
    check_length(config.lengths, config.max_length, choice, transformers_config(choice).to_dict())
    return _load_policy(choice, config, memory)


def _load_policy(choice: ModelChoice, config: RunConfig, memory: MemoryPlan | None) -> Policy:
    model, tokenizer = load_model(choice, config)
    if config.vllm and has_gpu():  # the engine does the same
        from pipeline.rollout import residual, rotary, swiglu

        residual.keep_residual(model)
        if not plain_vllm():
            rotary.keep_rotary(model)
            swiglu.keep_swiglu(model)
    engine = load_engine(choice, config, model, tokenizer, memory)
    if memory:
        return Policy(model, tokenizer, engine, memory, memory.micro_batch_tokens)
    tokens = cpu_micro_batch(model.config.to_dict(), config, machine_memory())
    return Policy(model, tokenizer, engine, micro_batch_tokens=tokens)


def load_engine(
    choice: ModelChoice, config: RunConfig, model: Any, tokenizer: Any, memory: MemoryPlan | None = None
) -> RolloutEngine:
    """The engine for an adapted model, which with a merging engine computes with the weights that this one serves."""
    ends = eos_token_ids(model, tokenizer)
    if not config.vllm:
        from pipeline.rollout.transformers_engine import TransformersEngine

        return TransformersEngine(
            model, eos_token_ids=ends, pad_token_id=tokenizer.pad_token_id, batch_size=TRANSFORMERS_ROWS
        )
    from pipeline.rollout.vllm.engine import EngineLimits, VLLMEngine

    rounding: Any = config.rounding if config.refresh == "merge" else None
    model.tinylora.merge_with(rounding)
    with quiet_libraries():
        return VLLMEngine(
            choice.location,
            model,
            dtype=compute_dtype(config.dtype),
            max_model_len=config.max_length,
            eos_token_ids=ends,
            rounding=rounding,
            packed=config.engine_weights == "nf4" or bool(memory and memory.packed),
            kv_dtype=config.kv_dtype,
            limits=EngineLimits(memory.kv_bytes, memory.sequences, memory.batched_tokens) if memory else None,
            seed=config.seed,
            plain=plain_vllm(),
            numbered=config.replicas != "1",
        )


def reserve_memory(choice: ModelChoice, config: RunConfig) -> MemoryPlan | None:
    """The shares of what is free on the GPU, with torch's allocator held to them; None without a GPU.

    Free is also what this process holds in torch's allocator without using it.
    """
    if not has_gpu():
        return None
    import torch

    free, total = torch.cuda.mem_get_info()
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    plan = plan_memory(transformers_config(choice).to_dict(), config, free)
    torch.cuda.set_per_process_memory_fraction(plan.allocator_bytes / total)
    return plan


def parameter_table(choice: ModelChoice, config: RunConfig) -> Sequence[tuple[str, str]]:
    """What would be trained and what stays frozen, from the architecture alone: no weights are loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(choice))
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
