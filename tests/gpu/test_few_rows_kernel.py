"""The product of few rows from packed codes is that of the dense matrix and its exact update, in float64.

`TRITON_INTERPRET=1 pytest tests/gpu/test_few_rows_kernel.py` runs it without a GPU, but for the shuffles."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from adapters.base import Packed
from adapters.merge import delta_weight

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs an NVIDIA GPU"),
]
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
       0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip
TYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]  # the interpreter multiplies no bf16


def packed(out: int, width: int, dtype: torch.dtype) -> tuple[Packed, Tensor]:
    """Random codes, and the matrix (out, in) that they stand for."""
    codes = torch.randint(0, 256, (out * width // 2,), dtype=torch.uint8, device=DEVICE)
    absmax = torch.rand(out * width // 64, device=DEVICE) * 0.05 + 0.01
    code = torch.tensor(NF4, device=DEVICE)
    state = SimpleNamespace(quant_type="nf4", code=code, blocksize=64, nested=False, absmax=absmax, shape=(out, width))
    state.dtype = dtype
    base = Packed(codes, state)
    base.absmax = absmax
    values = torch.stack([code[codes.long() >> 4], code[codes.long() & 15]], dim=-1).view(-1, 64) * absmax[:, None]
    return base, values.view(out, width).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("sizes", "width", "rank"),
    [([64], 128, 8), ([100, 36], 192, 4), ([128, 64, 64], 256, 1), ([70], 576, 20), ([64, 64], 2048, 8)],
)
@pytest.mark.parametrize(("rows", "bias"), [(1, True), (5, False), (16, True), (17, False), (64, True)])
def test_it_is_the_product_with_the_exact_update(
    dtype: torch.dtype, sizes: list[int], width: int, rank: int, rows: int, bias: bool
) -> None:
    from adapters.kernels.few_rows import FewRows

    torch.manual_seed(0)
    layers = [64, *sizes, 100]  # its neighbours are not touched
    bases, dense = zip(*(packed(out, width, dtype) for out in layers), strict=True)
    lefts = [torch.randn(out, rank, device=DEVICE) for out in layers]
    rights = [torch.randn(rank, width, device=DEVICE) * 0.1 for _ in layers]
    mixings = torch.randn(len(layers), rank, rank, device=DEVICE) * 0.1
    part = range(1, 1 + len(sizes))
    product = FewRows(list(bases), lefts, rights, [range(1), part, range(part.stop, part.stop + 1)], dtype)
    product.cores = 64 if INTERPRETED else product.cores  # so that shares are added, too
    product.partials = torch.full((64 * 64 * sum(sizes),), torch.nan, device=DEVICE)
    x = torch.randn(rows, width, device=DEVICE).to(dtype)
    added = torch.randn(sum(sizes), device=DEVICE).to(dtype) if bias else None
    updates = [delta_weight(lefts[i].double(), mixings[i].double(), rights[i].double()) for i in part]
    weight = torch.cat([dense[i].double() + update for i, update in zip(part, updates, strict=True)])
    expected = x.double() @ weight.T + (0 if added is None else added.double())
    found = product(x, part, mixings, added, torch.float32)
    bound = 2e-6 if dtype == torch.float16 else 4e-5  # two halves of bf16 hold 17 bits of Vᵀ
    assert (found - expected).norm() < bound * expected.norm()
    assert not product.arrivals.any()
    assert torch.equal(product(x, part, mixings, added, torch.float32), found)
    assert torch.equal(product(x, part, mixings, added, dtype), found.to(dtype))
