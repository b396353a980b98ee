"""On the GPU the kernels of vLLM and of Unsloth turn bf16 values by a float32 table and round once, and both are given
one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pipeline.rollout.test_rotary import DEFAULT, LLAMA3, misrounded, turned

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

HEADS = [(4, 4), (16, 2), (12, 2)]


def table(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows, width / 2) float32 of the angles of so many positions."""
    frequencies = 1e6 ** -(torch.arange(0, width, 2, device="cuda").float() / width)
    angles = torch.outer(torch.arange(rows, device="cuda").float(), frequencies)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("parameters", [DEFAULT, LLAMA3], ids=["default", "llama3"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("rows", [7, 77, 512])
def test_vllm_turns_in_float32(
    rows: int, width: int, heads: tuple[int, int], parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place, in the fused projection's output, and captured in a graph."""
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
    from vllm.model_executor import custom_op
    from vllm.model_executor.layers import rotary_embedding

    from pipeline.rollout.rotary import register_vllm_rotary

    monkeypatch.setattr(custom_op, "op_registry_oot", {})
    monkeypatch.setattr(rotary_embedding, "_ROPE_DICT", {})
    register_vllm_rotary()
    torch.manual_seed(0)
    settings = VllmConfig(compilation_config=CompilationConfig(mode=0))  # as `engine.py`: with it kernels are used
    with set_current_vllm_config(settings), torch.device("cuda"):
        rotary = rotary_embedding.get_rope(width, 4096, rope_parameters=parameters, dtype=torch.bfloat16)
    cache = rotary.cos_sin_cache
    assert cache.is_cuda and cache.dtype == torch.float32
    positions = torch.randint(0, 4096, (rows,), device="cuda")
    cos, sin = (part.unsqueeze(1).double() for part in cache[positions].chunk(2, dim=-1))
    sizes = [count * width for count in (*heads, heads[1])]
    original = torch.randn(rows, sum(sizes), device="cuda").bfloat16()
    qkv = original.clone()

    def run() -> None:
        qkv.copy_(original)
        q, k, _ = qkv.split(sizes, dim=-1)
        rotary(positions, q, k)

    run()
    eager = qkv.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    qkv.zero_()
    graph.replay()
    assert torch.equal(qkv, eager)
    for found, x in zip(eager.split(sizes, dim=-1)[:2], original.split(sizes, dim=-1), strict=False):
        exact = turned(x.view(rows, -1, width).double(), cos, sin)
        assert misrounded(found.view(rows, -1, width), exact) < 0.01
    assert torch.equal(eager[:, -sizes[2] :], original[:, -sizes[2] :])


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("length", [7, 77, 512])
def test_unsloth_turns_in_float32(length: int, width: int, heads: tuple[int, int], indexed: bool) -> None:
    """Values and gradients, at positions of their own or in order."""
    import unsloth  # noqa: F401
    from unsloth.kernels import fast_rope_embedding

    torch.manual_seed(0)
    cos, sin = table(1024, width)
    positions = torch.randint(0, 1024, (1, length), device="cuda") if indexed else torch.arange(length).unsqueeze(0)
    of_rows = [part[positions[0].to("cuda")].double() for part in (cos, sin)]
    inputs = [torch.randn(1, length, count, width, device="cuda").bfloat16().transpose(1, 2) for count in heads]
    targets = [torch.randn(x.shape, device="cuda").bfloat16() for x in inputs]
    leaves = [x.clone().requires_grad_() for x in inputs]
    whole = [torch.cat([part, part], dim=-1) for part in (cos, sin)]
    out = fast_rope_embedding(*[leaf * 1 for leaf in leaves], *whole, positions if indexed else None)
    gradients = torch.autograd.grad(out, leaves, targets)
    for found, gradient, x, target in zip(out, gradients, inputs, targets, strict=True):
        assert misrounded(found, turned(x.double(), *of_rows)) < 0.01
        assert misrounded(gradient, turned(target.double(), of_rows[0], -of_rows[1])) < 0.01


@pytest.mark.parametrize("count", [4, 40])
def test_a_model_of_unsloth_is_given_float32_tables(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The starter on completions of one shared prompt, in a row within and beyond the positions it was made for."""
    from pipeline.config import Settings, resolved
    from pipeline.policy.models import choose_model, load_model, made_ready
    from pipeline.rollout.rotary import keep_rotary
    from pipeline.training.attention import hidden_states
    from pipeline.training.packing import packed

    config = resolved(Settings(dataset="starter", max_prompt_length=208), starter=True, gpu=True)
    model, _ = load_model(made_ready(choose_model("starter")), config)
    keep_rotary(model)
    forward = type(model.model.layers[0].self_attn).forward
    plain, seen = forward.__globals__["fast_rope_embedding"], []

    def watched(q: Tensor, k: Tensor, *table_and_positions: Tensor) -> Any:
        out = plain(q, k, *table_and_positions)
        seen.append((q.dtype, out[0].dtype, out[1].dtype, *table_and_positions))
        return out

    monkeypatch.setitem(forward.__globals__, "fast_rope_embedding", watched)
    completions = [torch.randint(5, 300, (40,)).tolist() for _ in range(count)]
    pack = packed([list(range(5, 95))] * count, completions, "cuda")
    assert (len(pack.ids) > model.config.max_position_embeddings) == (count == 40)
    with torch.no_grad():
        hidden = hidden_states(model, pack.ids, pack.positions, pack.layout)
    assert hidden.isfinite().all() and len(seen) == len(model.model.layers)
    half = model.model.layers[0].self_attn.head_dim // 2
    frequencies = 1 / 10_000.0 ** (torch.arange(half).float() / half)
    angles = torch.outer(torch.arange(200).float(), frequencies)
    for *dtypes, cos, sin, positions in seen:
        assert dtypes == [torch.bfloat16] * 3 and cos.dtype == sin.dtype == torch.float32
        assert torch.equal(positions.flatten(), pack.positions)
        assert len(cos) >= len(pack.ids)
        torch.testing.assert_close(cos[:200, :half].cpu(), angles.cos(), rtol=0, atol=1e-4)
        torch.testing.assert_close(sin[:200, :half].cpu(), angles.sin(), rtol=0, atol=1e-4)
