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
def test_value_and_gradients_of_the_training_pass(shape: tuple[int, int], dtype: torch.dtype) -> None:
    from adapters.kernels.swiglu import swiglu_apart, swiglu_gradient

    generator = torch.Generator().manual_seed(shape[1])
    gate, up, grad = ((4 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(3))
    leaves = [gate.double().requires_grad_(), up.double().requires_grad_()]
    value = silu(leaves[0]) * leaves[1]
    expected = value.detach(), *torch.autograd.grad(value, leaves, grad.double())
    given = gate.to(DEVICE), up.to(DEVICE)
    found = swiglu_apart(*given), *swiglu_gradient(grad.to(DEVICE), *given)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.cpu().double(), other, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-5)
