"""The forward pass of named roundings: without any it is transformers', with all about as far from it as bf16 is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from pipeline.bench.causes import distance
from pipeline.bench.rounding import KEPT, SITES, RoundedForward

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
PROMPT, ANSWER = list(range(10, 40)), list(range(100, 140))


def made(config: Any) -> Any:
    """A random model whose weights are bf16 numbers, in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    return model.to(torch.bfloat16).float().eval()


@torch.no_grad()
def by_transformers(model: Any) -> Tensor:
    logits = model(torch.tensor([PROMPT + ANSWER])).logits[0, len(PROMPT) - 1 : -1].float()
    return torch.log_softmax(logits, dim=-1).gather(-1, torch.tensor(ANSWER)[:, None]).squeeze(-1)


@torch.no_grad()
def rounded(model: Any, *sites: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return RoundedForward(model, sites, dtype).log_probs(PROMPT, ANSWER)


@pytest.mark.parametrize("kind", [Qwen2Config, LlamaConfig, Qwen3Config])
def test_the_roundings_are_those_of_bf16(kind: Any) -> None:
    model = made(kind(**SIZES))
    exact = by_transformers(model)
    torch.testing.assert_close(rounded(model), exact, rtol=1e-5, atol=1e-5)
    bf16 = distance(by_transformers(copy.deepcopy(model).bfloat16()), exact)
    assert 0.4 < distance(rounded(model, *SITES), exact) / bf16 < 2.5
    alone = {site: distance(rounded(model, site), exact) for site in SITES}
    assert all(value > 1e-9 for value in alone.values()), alone
    kept = distance(rounded(model, *set(SITES) - set(KEPT)), exact)
    assert kept < distance(rounded(model, *SITES), exact)
    assert distance(rounded(model, *SITES, dtype=torch.float16), exact) < 0.1 * bf16


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown place of rounding: soul"):
        RoundedForward(None, ["soul"])
