"""The engine's SwiGLU is that of float64, rounded where 16 bits round.

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
    expected = silu(gate).to(dtype).double() * up
    found = swiglu(x.to(DEVICE)).cpu()
    assert found.shape == (rows, width) and found.dtype == dtype
    # where float32 lies between two 16-bit numbers, silu may round to the other
    assert torch.allclose(found.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=2e-6)
