"""The kernels of the residual stream give what the torch functions give, in float32 and in bf16, and what goes into the
stream is not rounded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.rollout.residual import add_norm, add_norm_gradient

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("width", [576, 1536, 2048, 3584])
@pytest.mark.parametrize("of_residual", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("with_x", [True, False])
def test_kernels_match_the_torch_functions(width: int, of_residual: torch.dtype, with_x: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    residual, x, to_y, to_total = (torch.randn(3, 11, width, generator=generator) for _ in range(4))
    residual, x, to_y = residual.to(of_residual), x.bfloat16(), to_y.bfloat16()
    weight = torch.randn(width, generator=generator).bfloat16()
    added = x if with_x else None
    expected = add_norm(added, residual, weight, 1e-6)
    on_gpu = None if added is None else added.cuda()
    stream, factors = residual.cuda(), weight.cuda()
    found = add_norm(on_gpu, stream, factors, 1e-6)
    assert torch.equal(found[1].cpu(), expected[1])
    torch.testing.assert_close(found[2].cpu(), expected[2], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1 / 128, atol=1e-6)
    assert (found[0].cpu() != expected[0]).float().mean() < 1e-3
    gradient = add_norm_gradient(to_y, to_total, expected[1], weight, expected[2])
    to_stream = add_norm_gradient(to_y.cuda(), to_total.cuda(), found[1], factors, found[2])
    torch.testing.assert_close(to_stream.cpu(), gradient, rtol=1e-4, atol=1e-5)
    assert torch.equal(stream.cpu(), residual)
    in_place = add_norm(on_gpu, stream, factors, 1e-6, in_place=True)
    assert torch.equal(in_place[0], found[0]) and torch.equal(in_place[1], found[1])
    assert (in_place[1].data_ptr() == stream.data_ptr()) == (of_residual == torch.float32)


def test_the_norm_adds_up_the_halves_of_a_product() -> None:
    generator = torch.Generator().manual_seed(1)
    halves, residual = torch.randn(2, 33, 2048, generator=generator), torch.randn(33, 2048, generator=generator)
    weight = torch.randn(2048, generator=generator).bfloat16()
    expected = add_norm(None, (halves.double().sum(0) + residual).float(), weight, 1e-6)
    on_gpu = halves.cuda(), residual.cuda(), weight.cuda()
    for found in (add_norm(halves, residual, weight, 1e-6), add_norm(*on_gpu, 1e-6)):
        torch.testing.assert_close(found[1].cpu(), expected[1], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1 / 128, atol=1e-6)


@pytest.mark.parametrize(("rows", "width", "terms", "halves"), [
    (1, 2048, 11008, True), (64, 1536, 8960, True), (512, 2048, 11008, True), (512, 2048, 2048, False),
    (1024, 2048, 11008, False), (256, 3584, 18944, True), (512, 3584, 18944, False),
])  # fmt: skip
def test_few_tiles_of_a_long_product_come_in_halves(rows: int, width: int, terms: int, halves: bool) -> None:
    """What is worth it on an H200, of `down_proj` and `o_proj` of 1.5B, 3B and 7B models."""
    from pipeline.rollout.vllm.stream import product_into_stream

    torch.manual_seed(0)
    x, weight = torch.randn(rows, terms, device="cuda").bfloat16(), torch.randn(width, terms, device="cuda").bfloat16()
    y = product_into_stream(x, weight)
    assert y.shape == ((2, rows, width) if halves else (rows, width)) and y.dtype == torch.float32
    exact = x.double() @ weight.double().mT
    alone = torch.mm(x, weight.mT, out_dtype=torch.float32)
    error, of_one_sum = ((found - exact).norm() / exact.norm() for found in (y.view(-1, rows, width).sum(0), alone))
    assert float(error) < min(1.1 * float(of_one_sum), 5e-5)


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_vllm_layers_into_the_stream_give_float32(rows: int) -> None:
    """Eagerly and captured in a graph; the other layers give bf16."""
    from vllm.config import VllmConfig, set_current_vllm_config

    from pipeline.rollout.vllm.layers import Linear

    torch.manual_seed(0)
    layer = SimpleNamespace(weight=torch.randn(576, 1536, device="cuda").bfloat16())
    x = torch.randn(rows, 1536, device="cuda").bfloat16()
    source: Any = SimpleNamespace(packed=None, beside=False)
    with set_current_vllm_config(VllmConfig()):
        into, other = (Linear(source, f"model.layers.0.mlp.{name}") for name in ("down_proj", "gate_up_proj"))
    y = into.apply(layer, x)
    exact = x.double() @ layer.weight.double().mT
    assert y.dtype == torch.float32 and float((y - exact).norm() / exact.norm()) < 1e-5
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = into.apply(layer, x)
    graph.replay()
    torch.testing.assert_close(captured, y, rtol=1e-5, atol=1e-3)
    assert other.apply(layer, x).dtype == torch.bfloat16
