"""A rotary embedding in float32: turned values are rounded once, whole models come closer to the exact policy, and vLLM
gets the trainer's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2 import modeling_qwen2

from pipeline.rollout.rotary import keep_rotary, rounded_once

DEFAULT = {"rope_type": "default", "rope_theta": 1e6}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pairs (x_i, x_{i + d / 2}) of x (..., L, d) turned by angles with these cosines and sines (L, d / 2), as in
    Su et al., "RoFormer", arXiv 2104.09864."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def misrounded(found: Tensor, exact: Tensor) -> float:
    """The share of bf16 values that are not the nearest to the exact ones; the others are neighbours of these."""
    nearest = exact.bfloat16()
    torch.testing.assert_close(found, nearest, rtol=1 / 128, atol=1e-5)
    return float((found != nearest).float().mean())


@given(st.integers(0, 1 << 30), st.integers(16, 40), st.sampled_from([16, 64, 128]), st.sampled_from([(4, 4), (6, 2)]))
def test_values_and_gradients_are_rounded_once(seed: int, length: int, width: int, heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    angles = 1e3 * torch.rand(length, width // 2, generator=generator)
    cos, sin = angles.cos(), angles.sin()
    inputs = [torch.randn(1, count, length, width, generator=generator).bfloat16() for count in heads]
    targets = [torch.randn(x.shape, generator=generator).bfloat16() for x in inputs]
    leaves = [x.requires_grad_() for x in inputs]
    table = [torch.cat([part, part], dim=-1).unsqueeze(0) for part in (cos, sin)]
    out = rounded_once(modeling_qwen2.apply_rotary_pos_emb)(*leaves, *table)
    gradients = torch.autograd.grad(out, leaves, targets)
    for found, gradient, x, target in zip(out, gradients, inputs, targets, strict=True):
        assert misrounded(found, turned(x.detach().double(), cos.double(), sin.double())) < 0.01
        assert misrounded(gradient, turned(target.double(), cos.double(), -sin.double())) < 0.01


def test_a_bf16_model_comes_closer_to_the_exact_one_and_a_float32_one_stays(tiny_model_folder: Path) -> None:
    ids = torch.randint(5, 300, (4, 60), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def logits(dtype: torch.dtype, keep: bool) -> Tensor:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16).to(dtype)
        for _ in range(2 * keep):  # again changes nothing
            keep_rotary(model)
        seen: list[Tensor] = []
        model.model.layers[0].self_attn.register_forward_pre_hook(
            lambda _, __, options: seen.extend(options["position_embeddings"]), with_kwargs=True
        )
        found = model(ids, use_cache=False).logits
        assert {table.dtype for table in seen} == {torch.float32 if keep else dtype}
        return found.float()  # type: ignore[no-any-return]

    exact, plain, kept = logits(torch.float32, False), logits(torch.bfloat16, False), logits(torch.bfloat16, True)
    assert (kept - exact).norm() < 0.99 * (plain - exact).norm()
    assert torch.equal(logits(torch.float32, True), exact)


@pytest.mark.integration
@pytest.mark.parametrize("parameters", [DEFAULT, LLAMA3], ids=["default", "llama3"])
def test_vllm_keeps_the_trainers_table(parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor import custom_op
    from vllm.model_executor.layers import rotary_embedding

    from pipeline.rollout.rotary import register_vllm_rotary

    monkeypatch.setattr(custom_op, "op_registry_oot", {})
    monkeypatch.setattr(rotary_embedding, "_ROPE_DICT", {})
    register_vllm_rotary()
    register_vllm_rotary()
    with set_current_vllm_config(VllmConfig()):
        rotary = rotary_embedding.get_rope(32, 1000, rope_parameters=parameters, dtype=torch.bfloat16)
    config = LlamaConfig(head_dim=32, max_position_embeddings=1000, rope_parameters=parameters)
    table = LlamaRotaryEmbedding(config=config)(torch.empty(0), torch.arange(1000).unsqueeze(0))
    expected = torch.cat([part[0, :, :16] for part in table], dim=-1)
    read = rotary._match_cos_sin_cache_dtype(torch.empty(0, dtype=torch.bfloat16))
    assert read.dtype == torch.float32 and torch.equal(read, expected)
