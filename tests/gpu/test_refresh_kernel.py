"""The Triton refresh gives the bits of the torch reference, from a 16-bit base and from the packed NF4 weights.

`TRITON_INTERPRET=1 pytest tests/gpu/test_refresh_kernel.py` runs it without a GPU, but for the shuffles."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from adapters.base import Base, Packed, dense
from adapters.merge import Rounding, delta_weight, merge_weight, salt_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]  # the interpreter truncates to bf16
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs an NVIDIA GPU"),
]

SHAPES = [(64, 64), (100, 200), (33, 1000), (7, 33), (24, 2048), (200, 64), (8, 1280)]


def merged(base: Base, left: Tensor, mixing: Tensor, right: Tensor, rounding: Rounding, salt: int) -> Tensor:
    return merge_weight(dense(base), delta_weight(left, mixing, right), rounding, salt).view(torch.int16)


@pytest.mark.parametrize(
    "shapes",
    [SHAPES, [s for s in SHAPES if s[1] % 64 == 0], [s for s in SHAPES if s[1] % 256 == 0]],
    ids=["odd shapes", "aligned", "whole tiles"],
)
@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("kind", ["dense", "nf4"])
@pytest.mark.parametrize("dtype", TYPES)
def test_same_bits_as_the_reference(
    dtype: torch.dtype, kind: str, rounding: Rounding, rank: int, shapes: list[tuple[int, int]]
) -> None:
    from bitsandbytes.functional import quantize_4bit

    from adapters.kernels.merge import FusedRefresh

    if kind == "nf4":
        shapes = [shape for shape in shapes if shape[1] % 64 == 0]
    torch.manual_seed(0)
    weights = [torch.randn(shape, device=DEVICE).to(dtype) * 0.02 for shape in shapes]
    bases: list[Base] = list(weights)
    if kind == "nf4":
        bases = [Packed(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True)) for weight in weights]
    lefts = [torch.randn(rows, rank, device=DEVICE) for rows, _ in shapes]
    rights = [torch.randn(rank, columns, device=DEVICE) for _, columns in shapes]
    mixings = torch.randn(len(shapes), rank, rank, device=DEVICE) * 0.01
    mixings[1] = 0  # a module without an update keeps its base
    salts = [salt_of(str(i)) for i in range(len(shapes))]
    targets = [torch.full(shape, torch.nan, device=DEVICE, dtype=dtype) for shape in shapes]
    refresh = FusedRefresh(targets, bases, lefts, rights, salts, rounding == "stochastic")
    every = range(len(shapes))
    refresh(mixings, every)
    for i, base in enumerate(bases):
        expected = merged(base, lefts[i], mixings[i], rights[i], rounding, salts[i])
        assert torch.equal(targets[i].view(torch.int16), expected)
    assert torch.equal(targets[1], dense(bases[1]))
    refresh(torch.zeros_like(mixings), every)
    for target, base in zip(targets, bases, strict=True):
        assert torch.equal(target.view(torch.int16), dense(base).view(torch.int16))
    for i, base in enumerate(bases):  # one at a time
        refresh(mixings, range(i, i + 1))
        expected = merged(base, lefts[i], mixings[i], rights[i], rounding, salts[i])
        assert torch.equal(targets[i].view(torch.int16), expected)
        assert all(torch.equal(t, dense(b)) for t, b in zip(targets[i + 1 :], bases[i + 1 :], strict=True))
