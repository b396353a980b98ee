"""Which products an engine on packed weights makes without the matrix."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapters.base import Packed
from pipeline.rollout.vllm.packed import MOST_RANK, takes_few_rows


def bank(quant_type: str = "nf4", device: str = "cuda", rank: int = 8) -> Any:
    state = SimpleNamespace(quant_type=quant_type, shape=(64, 64), dtype=torch.bfloat16)
    vector, config = SimpleNamespace(device=torch.device(device)), SimpleNamespace(rank=rank)
    return SimpleNamespace(v=vector, config=config, bases=lambda: [Packed(torch.zeros(2048), state)] * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ["stochastic", None])
def test_few_rows_take_the_exact_update(rounding: Any, dtype: torch.dtype) -> None:
    assert takes_few_rows(bank(), rounding, dtype) and takes_few_rows(bank(rank=MOST_RANK), rounding, dtype)


def test_they_do_not_where_it_is_another_policys_or_the_kernel_cannot() -> None:
    """Rounding to nearest drops most of a small update, of the trainer's weights, too."""
    assert not takes_few_rows(bank(), "nearest", torch.bfloat16)
    assert not takes_few_rows(bank(rank=MOST_RANK + 1), "stochastic", torch.bfloat16)
    assert not takes_few_rows(bank("fp4"), "stochastic", torch.bfloat16)
    assert not takes_few_rows(bank(), "stochastic", torch.float32)
    assert not takes_few_rows(bank(device="cpu"), "stochastic", torch.bfloat16)
