"""Attention that reads a shared prompt once gives what attention in float64 gives, whatever rows share.

`TRITON_INTERPRET=1 pytest tests/gpu/test_attention_kernel.py` runs it without a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE, DTYPE = ("cpu", torch.float32) if INTERPRETED else ("cuda", torch.bfloat16)
BLOCK = 16

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs an NVIDIA GPU"),
]

# Of each group: tokens of its prompt, and of each of its completions.
BATCHES = {
    "a group": [(40, [1, 5, 30, 17])],
    "whole tiles of two prompts": [(64, [3] * 8), (100, [9] * 8)],
    "more than a tile": [(33, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])],
    "each alone": [(20, [4]), (50, [1]), (7, [90])],
    "prompts below a block": [(3, [1, 2]), (15, [1, 20])],
    "left of their groups": [(200, [70]), (36, [1, 2]), (90, [16]), (130, [40, 64, 128])],
}


def batch_of(groups: list[tuple[int, list[int]]], common: int, padding: int) -> tuple[Tensor, Tensor]:
    """Tables of blocks, in an order of their own, and lengths. common: tokens that all prompts begin with alike."""
    blocks = iter(torch.randperm(4096, generator=torch.Generator().manual_seed(1)).tolist())
    rows: list[list[int]] = []
    lengths: list[int] = []
    first = [next(blocks) for _ in range(common // BLOCK)]
    for prompt, completions in groups:
        prefix = first + [next(blocks) for _ in range(prompt // BLOCK)]
        for completion in completions:
            length = common // BLOCK * BLOCK + prompt + completion
            rows.append(prefix + [next(blocks) for _ in range(-(-length // BLOCK) - len(prefix))])
            lengths.append(length)
    tables = torch.zeros(len(rows) + padding, max(map(len, rows)) + 3, dtype=torch.int32)
    for row, entries in enumerate(rows):
        tables[row, : len(entries)] = torch.tensor(entries)
        tables[row, len(entries) :] = 7  # left there by another sequence, as all blocks behind the end
    return tables, torch.tensor(lengths + [0] * padding, dtype=torch.int32)


def exact(query: Tensor, cache: Tensor, tables: Tensor, lengths: Tensor, scale: float) -> Tensor:
    rows, heads, width = query.shape
    out = torch.zeros(rows, heads, width, dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        held = cache[tables[row].long()].double().transpose(1, 2).flatten(0, 1)[:length]  # (tokens, heads, 2 width)
        keys, values = held.repeat_interleave(heads // held.shape[1], dim=1).split(width, dim=-1)
        scores = torch.einsum("hd,thd->ht", query[row].double(), keys) * scale
        out[row] = torch.einsum("ht,thd->hd", scores.softmax(-1), values)
    return out


@pytest.mark.parametrize("groups", list(BATCHES.values()), ids=list(BATCHES))
@pytest.mark.parametrize(("heads", "keys", "width"), [(16, 2, 128), (9, 3, 64), (12, 2, 128), (2, 2, 64)])
@pytest.mark.parametrize("common", [0, 32])
def test_every_row_attends_to_its_own_sequence(groups, heads: int, keys: int, width: int, common: int) -> None:
    from adapters.kernels.attention import SharedPrompts

    tables, lengths = batch_of(groups, common, padding=3)
    generator = torch.Generator().manual_seed(2)
    cache = torch.randn(4096, keys, BLOCK, 2 * width, generator=generator).to(DTYPE)
    query = torch.randn(len(lengths), heads, width, generator=generator).to(DTYPE)
    scale = width**-0.5
    expected = exact(query, cache, tables, lengths, scale)
    prompts = SharedPrompts(64, heads, width, BLOCK, torch.device(DEVICE))
    places = cache.to(DEVICE), tables.to(DEVICE), lengths.to(DEVICE)
    prompts.find(places[1], places[2])
    out = torch.full((len(lengths), heads, width), float("nan"), dtype=DTYPE, device=DEVICE)
    prompts.attend(query.to(DEVICE), *places, scale, out)
    error = (out.cpu().double() - expected).abs().max()
    assert float(error) < (2e-6 if INTERPRETED else 2e-2)
    for row, length in enumerate(lengths.tolist()):  # what is shared is the same block, and full
        shared = int(prompts.shared[row])
        assert shared % BLOCK == 0 and (shared < length or length == 0)


def test_the_rows_of_a_prompt_make_a_tile() -> None:
    from adapters.kernels.attention import SharedPrompts

    tables, lengths = batch_of([(64, [3] * 8), (100, [9] * 7), (50, [2]), (80, [4] * 10)], common=32, padding=2)
    prompts = SharedPrompts(32, 2, 64, BLOCK, torch.device(DEVICE))
    prompts.find(tables.to(DEVICE), lengths.to(DEVICE))
    assert prompts.starts.tolist()[:9] == [0, 8, 15, 16, 24, 26, 27, 28, 28]
    assert prompts.shared.tolist()[:28] == [96] * 8 + [128] * 7 + [0] + [112] * 10 + [0] * 2
