"""A residual stream in float32: the norm's formula and gradient, and whole models closer to the exact policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import TinyLoRAConfig, inject
from pipeline.rollout.residual import AddNorm, keep_residual

EPS = 1e-6


def inputs(with_x: bool) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """x or None, residual, weight, and the gradients of both outputs."""
    generator = torch.Generator().manual_seed(0)
    x, residual, to_y, to_total = (torch.randn(2, 5, 24, generator=generator) for _ in range(4))
    return x if with_x else None, residual, torch.randn(24, generator=generator), to_y, to_total


def of_float64(with_x: bool) -> tuple[Tensor, ...]:
    """y, s and the gradients of residual and x, by autograd."""
    x, residual, weight, to_y, to_total = (None if part is None else part.double() for part in inputs(with_x))
    leaves = [part.requires_grad_() for part in (residual, x) if part is not None]
    total = sum(leaves) * 1.0
    y = weight * total / (total.square().mean(dim=-1, keepdim=True) + EPS).sqrt()
    return y, total, *torch.autograd.grad([y, total], leaves, [to_y, to_total])


@pytest.mark.parametrize("with_x", [True, False])
def test_values_and_gradients_are_those_of_the_formula(with_x: bool) -> None:
    x, residual, weight, to_y, to_total = inputs(with_x)
    leaves = [part.requires_grad_() for part in (residual, x) if part is not None]
    y, total = AddNorm.apply(x, residual * 1.0, weight, EPS)
    found = y, total, *torch.autograd.grad([y, total], leaves, [to_y, to_total])
    for one, expected in zip(found, of_float64(with_x), strict=True):
        torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=1e-5)


def test_y_is_rounded_once_and_the_stream_not_at_all() -> None:
    x, residual, weight, *_ = inputs(True)
    assert x is not None
    rounded = x.bfloat16(), weight.bfloat16()
    y, total = AddNorm.apply(rounded[0], residual, rounded[1], EPS)
    exact = residual + rounded[0].float()
    normed = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + EPS) * rounded[1].float()
    assert total.dtype == torch.float32 and torch.equal(total, exact)
    assert y.dtype == torch.bfloat16 and torch.equal(y, normed.bfloat16())


def log_probs_and_gradient(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    bank = model.tinylora
    bank.v.grad = None
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state.to(model.dtype)
    logits = hidden.float() @ model.lm_head.weight.float().mT
    log_probs = torch.log_softmax(logits[:, :-1], dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    log_probs.mean().backward()
    return log_probs.detach(), bank.v.grad.clone()


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_bf16_model_comes_closer_to_the_exact_one(tiny_model_folder: Path, checkpointing: bool) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.randint(5, 300, (4, 60), generator=torch.Generator().manual_seed(1))

    def made(dtype: torch.dtype, keep: bool) -> tuple[Tensor, Tensor]:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16).to(dtype)
        inject(model, TinyLoRAConfig(u=8))
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        if keep:
            keep_residual(model)
        return log_probs_and_gradient(model, ids)

    exact, plain, kept = made(torch.float32, False), made(torch.bfloat16, False), made(torch.bfloat16, True)
    assert distance(kept[0], exact[0]) < 0.9 * distance(plain[0], exact[0])
    assert distance(kept[1], exact[1]) < 0.05
    same = made(torch.float32, True)
    for part in range(2):
        torch.testing.assert_close(same[part], exact[part], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rounding", ["nearest", None])
def test_the_stream_takes_in_float32_except_with_a_cache(tiny_model_folder: Path, rounding: Any) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.randint(5, 300, (2, 30), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16)
    bank = inject(model, TinyLoRAConfig(u=8))
    torch.nn.init.normal_(bank.v, std=0.1)
    bank.merge_with(rounding)
    keep_residual(model)
    outputs: dict[str, Tensor] = {}
    layer = model.model.layers[0]
    for name, part in (("o", layer.self_attn.o_proj), ("down", layer.mlp.down_proj), ("up", layer.mlp.up_proj)):
        part.register_forward_hook(lambda _, inputs, y, name=name: outputs.update({name: y, f"into {name}": inputs[0]}))
    model.model(ids, use_cache=False).last_hidden_state.sum().backward()
    assert {name: outputs[name].dtype for name in ("o", "down", "up")} == {
        "o": torch.float32,
        "down": torch.float32,
        "up": torch.bfloat16,
    }
    assert bank.v.grad is not None and bank.v.grad.isfinite().all() and bank.v.grad.abs().sum() > 0
    if rounding:
        exact = outputs["into down"].double() @ layer.mlp.down_proj.merged_weight().double().mT
        torch.testing.assert_close(outputs["down"].double(), exact, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model(ids, use_cache=True)
    assert {outputs[name].dtype for name in ("o", "down", "up")} == {torch.bfloat16}


@pytest.mark.integration
def test_vllm_builds_norms_that_keep_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor import custom_op
    from vllm.model_executor.layers.layernorm import RMSNorm

    from pipeline.rollout.residual import register_vllm_norm

    monkeypatch.setattr(custom_op, "op_registry_oot", {})
    register_vllm_norm()
    register_vllm_norm()
    with set_current_vllm_config(VllmConfig()):
        norm = RMSNorm(24, EPS, dtype=torch.bfloat16)
    x, residual, weight, *_ = inputs(True)
    assert x is not None
    norm.weight.data = weight.bfloat16()
    y, total = norm(x.bfloat16(), residual)
    expected = AddNorm.apply(x.bfloat16(), residual, weight.bfloat16(), EPS)
    assert torch.equal(y, expected[0]) and torch.equal(total, expected[1])
    assert norm(x.bfloat16()).dtype == torch.bfloat16
