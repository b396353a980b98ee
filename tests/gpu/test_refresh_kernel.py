"""The Triton refresh gives the bits of the torch reference, from a bf16 base and from the packed NF4 weights."""

from __future__ import annotations

import pytest
import torch

from adapters.merge import delta_weight, merge_weight, salt_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

SHAPES = [(64, 64), (100, 200), (33, 1000), (512, 2048), (2048, 64)]


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("base", ["bf16", "nf4"])
def test_same_bits_as_the_reference(base: str, rounding, rank: int) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from adapters.refresh_kernel import FusedRefresh, packed_base

    shapes = [shape for shape in SHAPES if base == "bf16" or shape[0] * shape[1] % 64 == 0]
    torch.manual_seed(0)
    weights = [torch.randn(shape, device="cuda").bfloat16() * 0.02 for shape in shapes]
    lefts = [torch.randn(rows, rank, device="cuda") for rows, _ in shapes]
    rights = [torch.randn(rank, columns, device="cuda") for _, columns in shapes]
    mixings = torch.randn(len(shapes), rank, rank, device="cuda") * 0.01
    mixings[1] = 0  # a module without an update keeps its base
    salts = [salt_of(str(i)) for i in range(len(shapes))]
    targets = [torch.full(shape, torch.nan, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    bases, code = weights, None
    if base == "nf4":
        quantised = [quantize_4bit(weight, quant_type="nf4", compress_statistics=True) for weight in weights]
        bases = [packed_base(codes, state) for codes, state in quantised]
        code = quantised[0][1].code
        weights = [dequantize_4bit(codes, state) for codes, state in quantised]
    refresh = FusedRefresh(targets, bases, lefts, rights, salts, rounding == "stochastic", code)
    refresh(mixings)
    for i, weight in enumerate(weights):
        expected = merge_weight(weight, delta_weight(lefts[i], mixings[i], rights[i]), rounding, salts[i])
        assert torch.equal(targets[i].view(torch.int16), expected.view(torch.int16))
    assert torch.equal(targets[1], weights[1])
    refresh(torch.zeros_like(mixings))
    assert all(torch.equal(t.view(torch.int16), w.view(torch.int16)) for t, w in zip(targets, weights, strict=True))
