"""SwiGLU of the engine and of the training pass is that of float64, rounded once.

`TRITON_INTERPRET=1 pytest tests/gpu/test_swiglu_kernel.py` runs it without a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn.functional import silu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("width", [1, 576, 2048, 2049, 11008])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16])
def test_the_product_is_that_of_float64(width: int, rows: int, dtype: torch.dtype) -> None:
    from adapters.kernels.swiglu import swiglu

    x = (4 * torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(width))).to(dtype)
    gate, up = x.double().chunk(2, dim=-1)
    expected = silu(gate) * up
    found = swiglu(x.to(DEVICE)).cpu()
    assert found.shape == (rows, width) and found.dtype == dtype
    assert torch.allclose(found.double(), expected, rtol=0.51 * torch.finfo(dtype).eps, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 576), (5, 4097)])
@pytest.mark.parametrize("dtype", [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16])
def test_products_and_their_gradients_are_those_of_float64(shape: tuple[int, int], dtype: torch.dtype) -> None:
    from adapters.kernels.swiglu import swiglu_gradient, swiglu_of_products

    generator = torch.Generator().manual_seed(shape[1])
    gate, up, grad = (4 * torch.randn(shape, generator=generator) for _ in range(3))
    kept = [torch.empty(shape, dtype=dtype, device=DEVICE) for _ in range(2)]
    products = [gate.to(DEVICE), up.to(DEVICE)]
    y = swiglu_of_products(products, dtype, kept)
    close = {"rtol": 0.51 * torch.finfo(dtype).eps, "atol": 2e-6}
    torch.testing.assert_close(y.cpu().double(), silu(gate.double()) * up.double(), **close)
    assert torch.equal(y, swiglu_of_products(products, dtype, None))
    for rounded, product in zip(kept, products, strict=True):
        assert torch.equal(rounded, product.to(dtype))
    leaves = [part.cpu().double().requires_grad_() for part in kept]
    expected = torch.autograd.grad(silu(leaves[0]) * leaves[1], leaves, grad.to(dtype).double())
    for one, other in zip(swiglu_gradient(grad.to(dtype).to(DEVICE), kept), expected, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-5)
