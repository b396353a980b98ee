"""How a GPU's memory is shared between trainer and engine, decided from the architecture before anything is loaded.

Both live in one process and one allocator: what the training pass frees, the next generation uses, so only weights, the
key-value cache and the larger of the two phases count. The engine reads the trainer's frozen weights and keeps no base
of its own. The budget is a promise: torch's allocator is told not to go beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import ConfigError, RunConfig

DEFAULT_SHARE = 0.9  # of what is free, when no budget is given
CONTEXT = 1.4e9  # CUDA context, NCCL, kernels and handles, outside torch's allocator
GRAPHS = 0.9e9  # captured graphs, library workspaces and fragments of the allocator
BATCHED_TOKENS = 8192  # of one forward pass of the engine
MOST_SEQUENCES = 512  # vLLM captures graphs up to this many
HEAD_BYTES = 0.5e9  # logits of one chunk in the training pass
LEAST_MICRO_BATCH = 4096
TRANSFORMERS_ROWS = 64  # that generate at a time without vLLM
NF4_BYTES = 0.5 + 4 / 64 + 1.1 / 64  # codes, expanded scales, and the packed scales they come from; per parameter


@dataclass(frozen=True)
class MemoryPlan:
    """bytes of the key-value cache; sequences generated at a time; tokens of one engine pass; tokens of one training
    micro-batch; whether its activations are recomputed; the allocator's limit in bytes."""

    kv_bytes: int
    sequences: int
    batched_tokens: int
    micro_batch_tokens: int
    gradient_checkpointing: bool
    allocator_bytes: int


@dataclass(frozen=True)
class Sizes:
    """Counts of a Qwen2-like architecture; `query` is not `hidden` where the heads are wider, as in small Qwen3."""

    hidden: int
    intermediate: int
    layers: int
    query: int
    key_value: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, architecture: Mapping[str, Any]) -> Sizes:
        heads = architecture["num_attention_heads"]
        head = architecture.get("head_dim") or architecture["hidden_size"] // heads
        return cls(
            architecture["hidden_size"],
            architecture["intermediate_size"],
            architecture["num_hidden_layers"],
            heads * head,
            architecture.get("num_key_value_heads", heads) * head,
            architecture["vocab_size"],
            bool(architecture.get("tie_word_embeddings")),
        )

    @property
    def projections(self) -> int:
        """Parameters of all adapted matrices."""
        attention = 2 * self.hidden * (self.query + self.key_value)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def kv_token(self) -> int:
        """Bytes of keys and values of one token in bf16."""
        return 4 * self.layers * self.key_value

    @property
    def layer_token(self) -> int:
        """Bytes that one layer keeps for the backward pass of one token: the inputs of its norms in float32, and in
        bf16 its queries, keys, values and attention output, and three vectors of the feed-forward layer."""
        return 2 * (8 * self.hidden + 2 * self.query + 2 * self.key_value + 3 * self.intermediate)

    def training_bytes(self, tokens: int, checkpointing: bool) -> float:
        """Peak of a forward and backward pass over `tokens`."""
        kept = self.layers * (4 * self.hidden if checkpointing else self.layer_token) * tokens
        return kept + 2 * self.layer_token * tokens + HEAD_BYTES

    def engine_bytes(self, sequences: int) -> float:
        """Peak of the engine's forward pass besides weights and cache: activations, and the logits of every sequence in
        three float32 copies."""
        return BATCHED_TOKENS * 2 * (3 * self.intermediate + 4 * self.hidden) + 12 * sequences * self.vocabulary


def plan_memory(architecture: Mapping[str, Any], config: RunConfig, free: float) -> MemoryPlan:
    """Shares for a run on a card with `free` bytes that nobody else uses.

    architecture: the model's config.json. First the cache for a whole step's rollouts, as far as the smallest
    training pass leaves room, then the largest training pass next to it, without recomputation if that fits. Raises
    `ConfigError` if the budget is beyond what is free or too small for one sequence.
    """
    budget = DEFAULT_SHARE * free if config.gpu_memory is None else config.gpu_memory * 1e9
    if budget > free:
        raise ConfigError(
            f"--gpu-memory {config.gpu_memory:g}: {free / 1e9:.1f} GB of GPU memory are free; ask for less, "
            f"or stop other programs on the GPU"
        )
    sizes = Sizes.of(architecture)
    frozen = sizes.projections * (NF4_BYTES if config.quant == "nf4" else 2) + 2 * sizes.embeddings
    served = 2 * (sizes.projections + sizes.embeddings) if config.vllm else 0
    fixed = CONTEXT + GRAPHS + frozen + served + 2 * sizes.hidden * sizes.intermediate
    length = config.max_length
    wanted = min(MOST_SEQUENCES, max(config.batch_size, 64))
    least = max(length, min(LEAST_MICRO_BATCH, config.micro_batch_tokens))
    sampling = sizes.engine_bytes(wanted)
    if not config.vllm:  # transformers generates with a cache of its own, which it gives back
        rows = min(TRANSFORMERS_ROWS, config.batch_size)
        sampling = rows * (length * sizes.kv_token + 12 * sizes.vocabulary)
    phase = max(sizes.training_bytes(least, True), sampling)
    cache = min(budget - fixed - phase, 1.1 * wanted * length * sizes.kv_token) if config.vllm else 0
    sequences = min(wanted, int(cache // (length * sizes.kv_token))) if config.vllm else wanted
    if sequences < 1 or budget < fixed + phase:
        needed = math.ceil((fixed + phase + length * sizes.kv_token * config.vllm) / 1e8) / 10
        raise ConfigError(
            f"--gpu-memory: this run needs at least {needed:.1f} GB for the frozen weights, "
            f"{'the engine, ' if config.vllm else ''}and a training pass over {least} tokens; it has {budget / 1e9:.1f}"
        )
    left = budget - fixed - cache
    tokens, checkpointing = config.micro_batch_tokens, False
    if sizes.training_bytes(max(tokens // 2, least), False) > left:
        checkpointing = True
    while tokens > least and sizes.training_bytes(tokens, checkpointing) > left:
        tokens = max(least, tokens // 2)
    return MemoryPlan(int(cache), sequences, BATCHED_TOKENS, tokens, checkpointing, int(budget - CONTEXT))
