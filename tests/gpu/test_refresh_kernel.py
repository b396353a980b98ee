"""The Triton refresh gives the bits of the torch reference, from a 16-bit base and from the packed NF4 weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapters.base import Base, Packed, dense
from adapters.merge import Rounding, delta_weight, merge_weight, salt_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

SHAPES = [(64, 64), (100, 200), (33, 1000), (7, 33), (512, 2048), (2048, 64)]


def merged(base: Base, left: Tensor, mixing: Tensor, right: Tensor, rounding: Rounding, salt: int) -> Tensor:
    return merge_weight(dense(base), delta_weight(left, mixing, right), rounding, salt).view(torch.int16)


@pytest.mark.parametrize("shapes", [SHAPES, [s for s in SHAPES if s[1] % 64 == 0]], ids=["odd shapes", "aligned"])
@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("kind", ["dense", "nf4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_same_bits_as_the_reference(
    dtype: torch.dtype, kind: str, rounding: Rounding, rank: int, shapes: list[tuple[int, int]]
) -> None:
    from bitsandbytes.functional import quantize_4bit

    from adapters.kernels.merge import FusedRefresh

    if kind == "nf4":
        shapes = [shape for shape in shapes if shape[1] % 64 == 0]
    torch.manual_seed(0)
    weights = [torch.randn(shape, device="cuda").to(dtype) * 0.02 for shape in shapes]
    bases: list[Base] = list(weights)
    if kind == "nf4":
        bases = [Packed(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True)) for weight in weights]
    lefts = [torch.randn(rows, rank, device="cuda") for rows, _ in shapes]
    rights = [torch.randn(rank, columns, device="cuda") for _, columns in shapes]
    mixings = torch.randn(len(shapes), rank, rank, device="cuda") * 0.01
    mixings[1] = 0  # a module without an update keeps its base
    salts = [salt_of(str(i)) for i in range(len(shapes))]
    targets = [torch.full(shape, torch.nan, device="cuda", dtype=dtype) for shape in shapes]
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
