"""The update beside vLLM's weights: its arithmetic, and the buffers that a refresh writes, without vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapters import TinyLoRAConfig, inject
from pipeline.rollout.vllm.lowrank import LowRank, add_lowrank

RANK = 2
FUSED = {  # as vLLM fuses the layers of a Qwen2
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
SIZES = [[12], [8, 5], [16, 4, 7]]
WIDTH = 24


def small_integers(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(-3, 4, shape, generator=generator).float()


def inputs(sizes: list[int], rank: int, lead: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, x, right, mixing, left in float32. x and right are small integers, so x rightᵀ is exact in bfloat16 too."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(*lead, sum(sizes), generator=generator)
    x, right = small_integers(generator, *lead, WIDTH), small_integers(generator, len(sizes) * rank, WIDTH)
    mixing = torch.randn(len(sizes), rank, rank, generator=generator) / 10
    return y, x, right, mixing, torch.randn(rank, sum(sizes), generator=generator)


def reference(y: Tensor, x: Tensor, right: Tensor, mixing: Tensor, left: Tensor, sizes: list[int]) -> Tensor:
    """The same in float64, one part after another by matrix products."""
    y, x, right, mixing, left = (tensor.double() for tensor in (y, x, right, mixing, left))
    rank = len(left)
    deltas = [
        x @ (columns.T @ r @ right[part * rank : (part + 1) * rank]).T
        for part, (r, columns) in enumerate(zip(mixing, left.split(sizes, dim=1), strict=True))
    ]
    return y + torch.cat(deltas, dim=-1)


def places_apart(one: Tensor, other: Tensor) -> Tensor:
    """How many bfloat16 numbers lie between two, element by element."""
    bits = [tensor.view(torch.int16).int() for tensor in (one, other)]
    first, second = (torch.where(b < 0, -(b & 0x7FFF), b) for b in bits)
    return (first - second).abs()


@pytest.mark.parametrize("lead", [(6,), (2, 3), (2, 1, 4)], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_update_is_that_of_plain_matrix_products(sizes: list[int], rank: int, lead: tuple[int, ...]) -> None:
    tensors = inputs(sizes, rank, lead)
    served = add_lowrank(*tensors, sizes)
    expected = reference(*tensors, sizes)
    assert served.shape == expected.shape == (*lead, sum(sizes)) and served.dtype == torch.float32
    torch.testing.assert_close(served.double(), expected, rtol=1e-5, atol=1e-5)
    assert (expected - tensors[0]).abs().mean() > 0.1


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_bf16_is_rounded_once(sizes: list[int], rank: int) -> None:
    y, x, right, mixing, left = inputs(sizes, rank, (100,))
    tensors = (y.bfloat16(), x.bfloat16(), right.bfloat16(), mixing, left.bfloat16())
    served = add_lowrank(*tensors, sizes)
    assert served.dtype == torch.bfloat16
    apart = places_apart(served, reference(*tensors, sizes).bfloat16())
    assert apart.max() <= 1 and (apart > 0).float().mean() < 0.01
    delta = reference(torch.zeros_like(tensors[0]), *tensors[1:], sizes).bfloat16()
    assert (places_apart(served, tensors[0] + delta) > 0).float().mean() > 0.05  # the sum of two rounded numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_parts_without_mixing_are_left_bit_for_bit(sizes: list[int], dtype: torch.dtype) -> None:
    y, x, right, mixing, left = inputs(sizes, RANK, (4, 5))
    y, x, right, left = (tensor.to(dtype) for tensor in (y, x, right, left))
    assert torch.equal(add_lowrank(y, x, right, torch.zeros_like(mixing), left, sizes), y)
    for part in range(len(sizes)):
        alone = torch.zeros_like(mixing)
        alone[part] = mixing[part]
        served = add_lowrank(y, x, right, alone, left, sizes)
        changed = [not torch.equal(*pair) for pair in zip(served.split(sizes, -1), y.split(sizes, -1), strict=True)]
        assert changed == [index == part for index in range(len(sizes))]


@pytest.fixture
def model(tiny_model_folder: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    inject(model, TinyLoRAConfig(u=8, rank=RANK, groups=3))
    return model


def fused_layer(parts: list[nn.Module]) -> nn.Module:
    """A layer with the weight and the empty buffers of vLLM's."""
    layer = nn.Module()
    weights = [part.base_layer.weight.detach() for part in parts]
    weight = torch.cat(weights)  # type: ignore[arg-type]
    layer.tinylora_sizes = [len(one) for one in weights]  # type: ignore[assignment,arg-type]
    layer.register_buffer("weight", weight)
    layer.register_buffer("tinylora_right", weight.new_zeros(len(parts) * RANK, weight.shape[1]))
    layer.register_buffer("tinylora_left", weight.new_zeros(RANK, len(weight)))
    layer.register_buffer("tinylora_mixing", weight.new_zeros(len(parts), RANK, RANK))
    return layer


def outputs(layer, x: Tensor) -> Tensor:
    buffers = layer.tinylora_right, layer.tinylora_mixing, layer.tinylora_left, layer.tinylora_sizes
    return add_lowrank(x @ layer.weight.T, x, *buffers)


def test_fused_layers_serve_what_the_separate_ones_compute(model) -> None:
    bank = model.tinylora
    layers = dict(zip(bank.names, bank.layers, strict=True))
    fused: dict[str, tuple[nn.Module, list]] = {}
    places: dict[str, tuple[nn.Module, int]] = {}
    for depth in range(2):
        for name, children in FUSED.items():
            names = [f"model.layers.{depth}.{child}" for child in children]
            parts = [layers[one] for one in names]
            layer = fused_layer(parts)
            fused[f"{depth}.{name}"] = layer, parts
            places |= {one: (layer, position) for position, one in enumerate(names)}
    served = LowRank(bank, [places[name] for name in bank.names])
    generator = torch.Generator().manual_seed(0)
    for scale in (0.3, 0.1, 0.0):  # a later vector takes the place of the one before
        with torch.no_grad():
            bank.v.copy_(scale * torch.randn(bank.v.shape, generator=generator))
        v = bank.v.detach().clone()
        served.write(bank.mixings_of(v))
        for name, (layer, parts) in fused.items():
            x = torch.randn(2, 5, parts[0].in_features, generator=generator)
            with torch.no_grad():
                wanted = [x @ (part.base_layer.weight + part.delta_weight()).T for part in parts]
            torch.testing.assert_close(outputs(layer, x), torch.cat(wanted, -1), rtol=1e-5, atol=1e-4, msg=name)
            unchanged = torch.equal(outputs(layer, x), x @ layer.weight.T)  # type: ignore[operator,union-attr]
            assert unchanged == (scale == 0)
    assert served.mixings.shape == (14, RANK, RANK)
