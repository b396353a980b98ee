"""The plan of a GPU's memory: what it promises, at the sizes of Qwen2.5-Coder."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError, RunConfig, Settings, resolved
from pipeline.launch import prepare
from pipeline.policy import loading as policy
from pipeline.policy.memory import (
    BLOCK,
    CONTEXT,
    DEFAULT_SHARE,
    GRAPHS,
    MOST_SEQUENCES,
    NF4_BYTES,
    MemoryPlan,
    Sizes,
    cpu_micro_batch,
    plan_memory,
)
from pipeline.policy.models import ModelChoice, transformers_config
from pipeline.policy.shapes import SHAPES, meta_model

H200 = 141e9
LENGTHS = {"max_prompt_length": 256, "max_completion_length": 512}


def config_of(gpu_memory: float | None = None, **others) -> RunConfig:
    options = {"dataset": "x", "vllm": True, **LENGTHS, "gpu_memory": gpu_memory, **others}
    return resolved(Settings(**options), starter=False, gpu=True)


def plan_or_none(shape: str, config: RunConfig, free: float) -> MemoryPlan | None:
    try:
        return plan_memory(SHAPES[shape], config, free)
    except ConfigError:
        return None


def test_a_model_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="^--model no-such/name: its description cannot be read .") as error:
        transformers_config(ModelChoice("no-such/name", "no-such/name", ""))
    assert "\n" not in str(error.value)


def test_the_projections_of_3b_are_those_of_the_published_model() -> None:
    assert Sizes.of(SHAPES["3b"]).projections == 2_774_532_096


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_count_the_parameters_of_the_model(name: str) -> None:
    sizes, model = Sizes.of(SHAPES[name]), meta_model(name)
    matrices = {k: p.numel() for k, p in model.named_parameters() if p.dim() == 2}
    inside = {k: n for k, n in matrices.items() if ".layers." in k}
    assert len(inside) == 7 * sizes.layers
    assert sizes.projections == sum(inside.values())
    assert sizes.embeddings == sum(matrices.values()) - sum(inside.values())
    rest = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    biases, norms = sizes.hidden + 2 * sizes.key_value, 2 * sizes.hidden
    assert rest == sizes.layers * (biases + norms) + sizes.hidden
    keys = model.model.layers[0].self_attn.k_proj.weight
    assert sizes.kv_token == sizes.layers * 2 * keys.shape[0] * keys.dtype.itemsize


megabytes = st.integers(4000, 141_000)  # as integers, which are drawn evenly


@settings(max_examples=300, deadline=None)
@given(
    shape=st.sampled_from(list(SHAPES)),
    budget=megabytes,
    prompts=st.integers(1, 64),
    prompt_length=st.integers(16, 2048),
    completion_length=st.integers(16, 6144),
    vllm=st.booleans(),
    weights=st.sampled_from([("nf4", "auto"), ("nf4", "nf4"), ("nf4", "bf16"), ("none", "auto")]),
    kv_dtype=st.sampled_from(["auto", "fp8"]),
)
def test_the_parts_of_an_accepted_budget_fit(
    shape: str,
    budget: int,
    prompts: int,
    prompt_length: int,
    completion_length: int,
    vllm: bool,
    weights: tuple[str, str],
    kv_dtype: str,
) -> None:
    """Frozen weights, the engine's own, cache and the larger phase; and the longest sequence has room alone."""
    quant, engine_weights = weights
    assume(vllm or (engine_weights != "nf4" and kv_dtype == "auto"))
    config = config_of(
        budget / 1000, vllm=vllm, quant=quant, prompts_per_step=prompts, max_prompt_length=prompt_length,
        max_completion_length=completion_length, engine_weights=engine_weights, kv_dtype=kv_dtype,
    )  # fmt: skip
    plan, sizes = plan_or_none(shape, config, H200), Sizes.of(SHAPES[shape])
    assume(plan is not None)
    assert plan is not None
    frozen = sizes.projections * (NF4_BYTES if quant == "nf4" else 2) + 2 * sizes.embeddings
    own = 4 * sizes.hidden * sizes.intermediate if plan.packed else 2 * sizes.projections  # gate and up, or everything
    served = own if vllm else 0
    scratch = 2 * sizes.hidden * sizes.intermediate  # one merged matrix
    training = sizes.training_bytes(plan.micro_batch_tokens, plan.gradient_checkpointing, config.max_length)
    phase = max(training, sizes.engine_bytes(plan.sequences) if vllm else 0)
    assert plan.kv_bytes + frozen + served + scratch + CONTEXT + GRAPHS + phase <= budget * 1e6 + 1
    assert plan.micro_batch_tokens >= config.max_length and 1 <= plan.sequences <= MOST_SEQUENCES
    assert 0 < plan.allocator_bytes < budget * 1e6
    assert plan.packed == (engine_weights == "nf4") or engine_weights == "auto"
    if vllm:
        assert (config.max_length + BLOCK) * sizes.kv_token / (2 if kv_dtype == "fp8" else 1) <= plan.kv_bytes
    else:
        assert plan.kv_bytes == 0 and not plan.packed


@settings(max_examples=300, deadline=None)
@given(
    layers=st.integers(1, 96),
    heads=st.integers(1, 64),
    head=st.sampled_from([32, 64, 80, 128]),
    widening=st.integers(1, 6),
    vocabulary=st.integers(1000, 260_000),
    budget=megabytes,
    completion_length=st.integers(16, 40_000),
    micro_batch=st.integers(1, 50_000),
    vllm=st.booleans(),
)
def test_a_row_longer_than_a_micro_batch_has_its_memory(
    layers: int,
    heads: int,
    head: int,
    widening: int,
    vocabulary: int,
    budget: int,
    completion_length: int,
    micro_batch: int,
    vllm: bool,
) -> None:
    """It is trained whole, whatever was configured."""
    shape = {
        "hidden_size": heads * head, "intermediate_size": widening * heads * head, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocabulary,
    }  # fmt: skip
    config = config_of(
        budget / 1000, vllm=vllm, max_completion_length=completion_length, micro_batch_tokens=micro_batch
    )
    try:
        plan, sizes = plan_memory(shape, config, H200), Sizes.of(shape)
    except ConfigError:
        return
    frozen = sizes.projections * NF4_BYTES + 2 * sizes.embeddings + 2 * sizes.hidden * sizes.intermediate
    served = sizes.engine_weights(plan.packed) if vllm else 0
    longest = config.max_length
    row = sizes.training_bytes(max(longest, plan.micro_batch_tokens), plan.gradient_checkpointing, longest)
    assert CONTEXT + GRAPHS + frozen + served + plan.kv_bytes + row <= budget * 1e6 + 1


SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("gigabytes", "tokens"), [(6, 768), (8, 1024), (16, 2048), (24, 4096), (32, 8192), (64, 16384)]
)
def test_a_training_pass_on_a_cpu_has_a_share_of_its_memory(
    gigabytes: int, tokens: int, capsys: pytest.CaptureFixture
) -> None:
    """SmolLM2-135M takes 7 GB for 4,096 tokens in float32, 10 for 8,192, 20 for the configured 16,384. One row of the
    longest, 768 tokens, is the least."""
    assert cpu_micro_batch(SMOLLM2, config_of(16, quant="none"), gigabytes * 1e9) == tokens
    assert capsys.readouterr().out == ""


def test_a_row_that_has_no_room_in_that_share_is_said(capsys: pytest.CaptureFixture) -> None:
    config = config_of(16, quant="none", max_completion_length=8192)
    assert cpu_micro_batch(SMOLLM2, config, 16e9) == config.max_length == 8448
    said = capsys.readouterr().out
    assert re.fullmatch(r"a training pass over one row of 8448 tokens takes up to 1\d\.\d GB .* 16\.0 GB.*\n", said)


def test_plans_that_are_as_fast_are_said_to_be() -> None:
    """And never that one gives 1.0 times the tokens/s of the other."""
    plans = [plan_or_none("3b", config_of(size / 10), H200) for size in range(90, 300)]
    reasons = [plan.reason for plan in plans if plan]
    assert any("which should give about as many tokens/s as" in reason for reason in reasons)
    assert any("times the tokens/s of" in reason for reason in reasons)
    assert not any(" 1.0 times" in reason for reason in reasons)


@settings(max_examples=300, deadline=None)
@given(
    shape=st.sampled_from(list(SHAPES)),
    budgets=st.tuples(megabytes, megabytes).map(sorted),
    prompts=st.sampled_from([1, 8, 32, 128]),
    completion_length=st.sampled_from([64, 512, 4096]),
    engine_weights=st.sampled_from([None, "auto", "nf4", "bf16"]),
)
def test_more_memory_never_gives_less(
    shape: str, budgets: list[int], prompts: int, completion_length: int, engine_weights: str | None
) -> None:
    """Not fewer tokens/s, and with the same weights not fewer sequences, nor more recomputation."""
    options: dict[str, Any] = {"prompts_per_step": prompts, "max_completion_length": completion_length}
    options |= {"engine_weights": engine_weights} if engine_weights else {"vllm": False}
    small, large = (plan_or_none(shape, config_of(budget / 1000, **options), H200) for budget in budgets)
    assume(small is not None)
    assert small is not None and large is not None
    assert int(large.rate) >= int(small.rate)
    if small.packed == large.packed:
        assert large.sequences >= small.sequences
        assert large.gradient_checkpointing <= small.gradient_checkpointing
        if large.gradient_checkpointing == small.gradient_checkpointing:
            assert large.micro_batch_tokens >= small.micro_batch_tokens


@settings(max_examples=100, deadline=None)
@given(shape=st.sampled_from(list(SHAPES)), budget=megabytes, prompts=st.integers(1, 64))
def test_the_weights_chosen_are_those_that_generate_faster(shape: str, budget: int, prompts: int) -> None:
    plans = {
        weights: plan_or_none(shape, config_of(budget / 1000, prompts_per_step=prompts, engine_weights=weights), H200)
        for weights in ("auto", "nf4", "bf16")
    }
    rates = {weights: plan.rate if plan else 0 for weights, plan in plans.items()}
    assert int(rates["auto"]) == int(max(rates.values()))
    assert rates["nf4"] or not rates["bf16"]  # what bf16 has room for, packed weights have as well


def test_what_is_recomputed_from_is_not_on_the_card() -> None:
    """Unsloth keeps it in the host's memory, but for rows of less than 512 tokens."""
    sizes = Sizes.of(SHAPES["3b"])
    short, long = (sizes.training_bytes(8192, True, longest) for longest in (511, 512))
    assert short - long == (36 - 4) * 4 * 2048 * 8192
    assert long < sizes.training_bytes(8192, False, 512) / 4


def test_3b_fits_into_16_gb_by_recomputing_and_needs_no_recomputation_on_a_large_card() -> None:
    small = plan_memory(SHAPES["3b"], config_of(16), H200)
    assert small.gradient_checkpointing and small.sequences == 256 and not small.packed
    assert small.micro_batch_tokens == 8192  # half as many would leave a GPU waiting for the host
    large = plan_memory(SHAPES["3b"], config_of(), H200)
    assert not large.gradient_checkpointing and large.sequences == 256 == config_of().batch_size
    assert not large.packed and large.kv_bytes >= 256 * 768 * Sizes.of(SHAPES["3b"]).kv_token  # nothing is preempted
    assert large.allocator_bytes == pytest.approx(DEFAULT_SHARE * H200 - CONTEXT, abs=1)


@pytest.mark.parametrize(
    "shape, gigabytes, least", [("3b", 12, 256), ("7b", 24, 256), ("14b", 48, 256), ("7b", 16, 64)]
)
def test_large_models_on_small_cards_compute_from_the_packed_weights(shape: str, gigabytes: int, least: int) -> None:
    plan = plan_memory(SHAPES[shape], config_of(gigabytes), H200)
    assert plan.packed and plan.gradient_checkpointing and plan.sequences >= least
    assert re.fullmatch(r"engine: \d+ sequences at a time on the trainer's NF4 weights[;,] .*", plan.reason)


def test_keys_and_values_in_fp8_make_room() -> None:
    whole, half = (plan_memory(SHAPES["7b"], config_of(13, kv_dtype=kind), H200) for kind in ("auto", "fp8"))
    assert half.sequences > 1.8 * whole.sequences


def test_a_budget_too_small_names_what_is_needed() -> None:
    with pytest.raises(ConfigError, match="^--gpu-memory: ") as error:
        plan_memory(SHAPES["7b"], config_of(10), H200)
    needed = re.search(r"needs at least ([\d.]+) GB .* it has 10.0$", str(error.value))
    assert needed is not None and 10 < float(needed[1]) < 16
    assert plan_memory(SHAPES["7b"], config_of(float(needed[1])), H200).sequences >= 1
    assert plan_or_none("7b", config_of(float(needed[1]) - 0.1), H200) is None


def test_a_budget_beyond_what_is_free_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--gpu-memory 81: 80\.0 GB of GPU memory are free"):
        plan_memory(SHAPES["3b"], config_of(81), 80e9)
    assert plan_memory(SHAPES["3b"], config_of(80), 80e9).sequences == 256


def test_without_an_engine_nothing_is_reserved_for_it() -> None:
    without = plan_memory(SHAPES["3b"], config_of(16, vllm=False), H200)
    assert without.kv_bytes == 0
    assert without.micro_batch_tokens > plan_memory(SHAPES["3b"], config_of(16), H200).micro_batch_tokens
    assert plan_or_none("3b", config_of(12, quant="none"), H200) is None
    assert plan_or_none("3b", config_of(12, quant="none", vllm=False), H200) is not None


def test_the_plan_starts_from_what_is_free(monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path) -> None:
    """A card of 80 GB of which others use 50: 30 are free, and 2 that this process holds unused."""
    import torch

    shares: list[float] = []
    monkeypatch.setattr(policy, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(30e9), int(80e9)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: int(5e9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: int(3e9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    choice = ModelChoice("tiny", str(tiny_model_folder), "")
    plan = policy.reserve_memory(choice, config_of())
    assert plan is not None and plan.allocator_bytes == pytest.approx(DEFAULT_SHARE * 32e9 - CONTEXT, abs=1)
    assert shares == [pytest.approx(plan.allocator_bytes / 80e9)]
    with pytest.raises(ConfigError, match=r"--gpu-memory 40: 32\.0 GB of GPU memory are free"):
        policy.reserve_memory(choice, config_of(40))


@pytest.mark.parametrize("count, refused", [(None, False), ("1", False), ("", False), ("2", True), ("16", True)])
def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, count: str | None, refused: bool) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if count is not None:
        monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(ConfigError, match=f"WORLD_SIZE={count}: ") if refused else contextlib.nullcontext():
        prepare(Settings(model="starter"))
