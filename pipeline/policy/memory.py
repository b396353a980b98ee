"""How a GPU's memory is shared between trainer and engine, decided from the architecture before anything is loaded.
On a CPU only the training pass is held to a share of the machine's memory.

Both live in one process and one allocator: what the training pass frees, the next generation uses, so only weights, the
key-value cache and the larger of the two phases count. The engine has 16-bit weights of its own, or computes from the
trainer's packed ones and has more room for sequences: what is expected to generate faster. Sequences have the room
that they are expected to need, not that of the longest possible ones; where they need more, vLLM preempts some. The
budget is a promise: torch's allocator is told not to go beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import ConfigError, RunConfig

DEFAULT_SHARE = 0.9  # of what is free, when no budget is given
CPU_SHARE = 0.4  # of the machine's memory for a training pass in float32
CONTEXT = 1.4e9  # CUDA context, NCCL, kernels and handles, outside torch's allocator
GRAPHS = 0.9e9  # captured graphs, library workspaces and fragments of the allocator
BATCHED_TOKENS = 8192  # of one forward pass of the engine
MOST_SEQUENCES = 512  # vLLM captures graphs up to this many
HEAD_BYTES = 0.5e9  # logits of one chunk in the training pass
LEAST_MICRO_BATCH = 4096
OFFLOAD_LENGTH = 512  # of a row at most, from which on Unsloth keeps what it recomputes from in the host's memory
LAYERS_ON_CARD = 4  # whose inputs are on the card then: those that come and go, and the last one's
TRANSFORMERS_ROWS = 64  # that generate at a time without vLLM
VOCABULARY_BLOCK = 64  # vLLM's embeddings have a multiple of so many rows; others are copies of the trainer's
BLOCK = 16  # tokens of a block of the cache
EXPECTED_SHARE = 0.5  # of the longest completion that one is expected to take
# A decoding step of the 3B shape takes an H200 3.0 ms and 16 µs for every row, and making its layers from packed codes
# on the way 4.8 ms at rank 8 (docs/benchmarks.md, "Generation"). Ratios are those of bytes and operations per
# parameter, so they are used for other sizes and cards as well.
DOUBLING_ROWS = 180  # that take as long as the step alone
PACKED_COST = 4.8 / 3.0  # of a step, where the engine has no weights of its own
NF4_BYTES = 0.5 + 4 / 64 + 1.1 / 64  # codes, expanded scales, and the packed scales they come from; per parameter


@dataclass(frozen=True)
class MemoryPlan:
    """bytes of the key-value cache; sequences generated at a time; tokens of one engine pass; tokens of one training
    micro-batch; whether its activations are recomputed; the allocator's limit in bytes; whether the engine computes
    from the trainer's packed weights; why, in one line, '' without an engine."""

    kv_bytes: int
    sequences: int
    batched_tokens: int
    micro_batch_tokens: int
    gradient_checkpointing: bool
    allocator_bytes: int
    packed: bool = False
    reason: str = ""

    @property
    def rate(self) -> float:
        """Tokens/s in units of one sequence alone on an engine with weights of its own."""
        return self.sequences / (1 + PACKED_COST * self.packed + self.sequences / DOUBLING_ROWS)


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
        """Bytes of keys and values of one token in 16 bits."""
        return 4 * self.layers * self.key_value

    @property
    def largest_fused(self) -> int:
        """Parameters of the largest of vLLM's fused matrices."""
        return self.hidden * max(2 * self.intermediate, self.query + 2 * self.key_value)

    def engine_weights(self, packed: bool) -> float:
        """Bytes of the engine's own weights: its matrices, or the scratch of the largest, and padded embeddings."""
        embeddings = self.embeddings if self.vocabulary % VOCABULARY_BLOCK else 0
        return 2 * (embeddings + (self.largest_fused if packed else self.projections))

    @property
    def layer_token(self) -> int:
        """Bytes that one layer keeps for the backward pass of one token: the inputs of its norms in float32, and in
        16 bits its queries, keys, values and attention output, and three vectors of the feed-forward layer."""
        return 2 * (8 * self.hidden + 2 * self.query + 2 * self.key_value + 3 * self.intermediate)

    def training_bytes(self, tokens: int, checkpointing: bool, longest: int) -> float:
        """Peak of a forward and backward pass over `tokens`, in rows of at most `longest`."""
        kept = self.layers * self.layer_token
        if checkpointing:
            kept = 4 * self.hidden * (min(self.layers, LAYERS_ON_CARD) if longest >= OFFLOAD_LENGTH else self.layers)
        return (kept + 2 * self.layer_token) * tokens + HEAD_BYTES

    def engine_bytes(self, sequences: int) -> float:
        """Peak of the engine's forward pass besides weights and cache: activations, and the logits of every sequence in
        three float32 copies."""
        return BATCHED_TOKENS * 2 * (3 * self.intermediate + 4 * self.hidden) + 12 * sequences * self.vocabulary


def plan_memory(architecture: Mapping[str, Any], config: RunConfig, free: float) -> MemoryPlan:
    """Shares for a run on a card with `free` bytes that nobody else uses.

    architecture: the model's config.json. First the cache for a whole step's rollouts at their expected lengths, as far
    as the smallest training pass leaves room, then the largest training pass next to it, without recomputation if that
    fits; the cache takes what is left, up to the longest rollouts. Raises `ConfigError` if the budget is beyond what is
    free or too small for one sequence.
    """
    budget = DEFAULT_SHARE * free if config.gpu_memory is None else config.gpu_memory * 1e9
    if budget > free:
        raise ConfigError(
            f"--gpu-memory {config.gpu_memory:g}: {free / 1e9:.1f} GB of GPU memory are free; ask for less, "
            f"or stop other programs on the GPU"
        )
    sizes = Sizes.of(architecture)
    either = [False, True] if config.quant == "nf4" and config.vllm else [False]
    ways = {"auto": either, "bf16": [False], "nf4": [True]}[config.engine_weights]
    found = [_plan(sizes, config, budget, packed) for packed in ways]
    plans = [plan for plan in found if isinstance(plan, MemoryPlan)]
    if not plans:
        needed = math.ceil(min(need for need in found if not isinstance(need, MemoryPlan)) / 1e8) / 10
        raise ConfigError(
            f"--gpu-memory: this run needs at least {needed:.1f} GB for the frozen weights, "
            f"{'the engine, ' if config.vllm else ''}and a training pass over {_least_tokens(config)} tokens; it has "
            f"{budget / 1e9:.1f}"
        )
    best = max(plans, key=lambda plan: (int(plan.rate), plan.packed))  # as fast, packed ones leave training more room
    return replace(best, reason=_reason(best, found, config)) if config.vllm else best


def cpu_micro_batch(architecture: Mapping[str, Any], config: RunConfig, machine: float) -> int:
    """Tokens of one training micro-batch on a CPU with `machine` bytes of memory: as configured, or halved until the
    pass is within its share, but not below the longest row; says so where that has no room in it. It is of the whole
    memory, so that a resumed run cuts its batches as before."""
    sizes, tokens, longest = Sizes.of(architecture), config.micro_batch_tokens, config.max_length

    def needed(count: int) -> float:
        return 2 * sizes.training_bytes(count, False, longest)  # sizes are of bf16

    while tokens > longest and needed(tokens) > CPU_SHARE * machine:
        tokens = max(longest, tokens // 2)
    if needed(longest) > CPU_SHARE * machine:
        print(
            f"a training pass over one row of {longest} tokens takes up to {needed(longest) / 1e9:.1f} GB of this "
            f"machine's {machine / 1e9:.1f} GB; shorter ones (--max-completion-length) take less",
            flush=True,
        )
    return tokens


def _least_tokens(config: RunConfig) -> int:
    """Of the smallest training pass."""
    return max(config.max_length, min(LEAST_MICRO_BATCH, config.micro_batch_tokens))


def _plan(sizes: Sizes, config: RunConfig, budget: float, packed: bool) -> MemoryPlan | float:
    """The plan within `budget`, or the bytes that it needs at least."""
    frozen = sizes.projections * (NF4_BYTES if config.quant == "nf4" else 2) + 2 * sizes.embeddings
    served = sizes.engine_weights(packed) if config.vllm else 0
    fixed = CONTEXT + GRAPHS + frozen + served + 2 * sizes.hidden * sizes.intermediate
    wanted = min(MOST_SEQUENCES, max(config.batch_size, 64))
    kv_token = sizes.kv_token / (2 if config.kv_dtype == "fp8" else 1)
    prompt = config.max_prompt_length / config.num_generations  # a group shares it
    expected = (prompt + EXPECTED_SHARE * config.max_completion_length + BLOCK) * kv_token
    longest = (config.max_length + 2 * BLOCK) * kv_token  # one block is vLLM's own
    least = _least_tokens(config)
    if config.vllm:
        sampling = sizes.engine_bytes(wanted)
    else:  # transformers generates with a cache of its own, which it gives back
        rows = min(TRANSFORMERS_ROWS, config.batch_size)
        sampling = rows * (config.max_length * sizes.kv_token + 12 * sizes.vocabulary)
        expected = longest = 0

    def training(tokens: int, checkpointing: bool) -> float:
        return sizes.training_bytes(tokens, checkpointing, config.max_length)

    phase = max(training(least, True), sampling)
    if budget < fixed + phase + longest:
        return fixed + phase + longest
    cache = min(budget - fixed - phase, max(longest, 1.1 * wanted * expected))
    left = budget - fixed - cache
    tokens, checkpointing = max(least, config.micro_batch_tokens), False
    if training(max(tokens // 2, least), False) > left:
        checkpointing = True
    while tokens > least and training(tokens, checkpointing) > left:
        tokens = max(least, tokens // 2)
    sequences = wanted
    if config.vllm:
        phase = max(training(tokens, checkpointing), sampling)
        cache = max(cache, min(budget - fixed - phase, 1.1 * wanted * longest))
        sequences = max(1, min(wanted, int(cache // expected)))
    limit = int(budget - CONTEXT)
    return MemoryPlan(int(cache), sequences, BATCHED_TOKENS, tokens, checkpointing, limit, packed)


def _reason(best: MemoryPlan, found: list[MemoryPlan | float], config: RunConfig) -> str:
    """Which weights the engine computes with and why, in one line."""
    own = f"{'float16' if config.dtype == 'float16' else 'bf16'} weights of its own"
    weights = "the trainer's NF4 weights" if best.packed else own
    line = f"engine: {best.sequences} sequences at a time on {weights}"
    others = [plan for plan in found if plan is not best]
    if config.engine_weights != "auto" or not others:
        return line
    other = own if best.packed else "the trainer's NF4 weights"
    if not isinstance(others[0], MemoryPlan):
        return f"{line}; {other} would need {others[0] / 1e9:.1f} GB"
    ratio = best.rate / others[0].rate
    gain = f"{ratio:.1f} times the tokens/s of" if ratio >= 1.05 else "about as many tokens/s as"
    return f"{line}, which should give {gain} {others[0].sequences} on {other}"
