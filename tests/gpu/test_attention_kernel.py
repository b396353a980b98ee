"""A decoding step's attention, for rows that share prompts and for few rows, gives what rotation, cache and attention
in float64 give one after the other.

`TRITON_INTERPRET=1 pytest tests/gpu/test_attention_kernel.py` runs it without a GPU.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE, DTYPE = ("cpu", torch.float32) if INTERPRETED else ("cuda", torch.bfloat16)
BLOCK, BLOCKS = 16, 512

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
    blocks = iter(torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(1)).tolist())
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


def angles_of(positions: int, width: int) -> Tensor:
    """Cosines, then sines, of every position (RoFormer, arXiv 2104.09864), (positions, width) float32."""
    angle = torch.arange(positions).double()[:, None] * 1e4 ** (-torch.arange(0, width, 2).double() / width)
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """x (rows, heads, width), each row turned by its own angles (rows, width), rounded once."""
    (first, second), (cos, sin) = x.double().chunk(2, dim=-1), angles.double()[:, None].chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def shared_prompts(tables: Tensor, lengths: Tensor, heads: int, keys: int, width: int) -> Any:
    from adapters.kernels.attention import SharedPrompts

    prompts = SharedPrompts(64, heads, keys, width, BLOCK, 3 * keys, torch.device(DEVICE))
    prompts.find(tables, lengths)
    for row, length in enumerate(lengths.tolist()):  # what is shared is the same block, and full
        shared = int(prompts.shared[row])
        assert shared % BLOCK == 0 and (shared < length or length == 0)
    return prompts


def few_sequences(programs: int) -> Any:
    def way(tables: Tensor, lengths: Tensor, heads: int, keys: int, width: int) -> Any:
        from adapters.kernels.few_sequences import FewSequences

        return FewSequences(20, heads, keys, width, BLOCK, programs, torch.device(DEVICE))

    return way


@pytest.mark.parametrize("groups", list(BATCHES.values()), ids=list(BATCHES))
@pytest.mark.parametrize(("heads", "keys", "width"), [(16, 2, 128), (9, 3, 64), (12, 2, 128), (2, 2, 64)])
@pytest.mark.parametrize("common", [0, 32])
@pytest.mark.parametrize("way", [shared_prompts, few_sequences(1), few_sequences(200)], ids=["shared", "few", "parts"])
def test_a_step_turns_writes_and_attends(groups, heads: int, keys: int, width: int, common: int, way: Any) -> None:
    tables, lengths = batch_of(groups, common, padding=3)
    rows, generator = len(lengths), torch.Generator().manual_seed(2)
    cache = torch.randn(BLOCKS, keys, BLOCK, 2 * width, generator=generator).to(DTYPE)
    qkv = torch.randn(rows, heads + 2 * keys, width, generator=generator).to(DTYPE)
    query, key, value = qkv.split([heads, keys, keys], dim=1)
    turns = common == 0  # the other batches come turned
    angles, scale = angles_of(512, width), width**-0.5
    at = (lengths.long() - 1).clamp(min=0)
    expected_cache = cache.clone()
    rotated = [turned(x, angles[at]) if turns else x for x in (query, key)]
    for row in range(rows):
        if lengths[row]:
            block, token = tables[row, at[row] // BLOCK], at[row] % BLOCK
            expected_cache[block, :, token] = torch.cat([rotated[1][row], value[row]], dim=-1)
    expected = exact(rotated[0], expected_cache, tables, lengths, scale)

    served, tables, lengths = cache.to(DEVICE), tables.to(DEVICE), lengths.to(DEVICE)
    step = way(tables, lengths, heads, keys, width)
    bound = 2e-6 if INTERPRETED else 2e-2
    for _ in range(2):  # the second finds what the first left
        out = torch.full((rows, heads, width), float("nan"), dtype=DTYPE, device=DEVICE)
        parts = qkv.to(DEVICE).split([heads, keys, keys], dim=1)
        step.attend(*parts, angles.to(DEVICE) if turns else None, served, tables, lengths, scale, out)
        assert float((out.cpu().double() - expected).abs().max()) < bound
        assert float((served.cpu().double() - expected_cache.double()).abs().max()) < bound


@pytest.mark.parametrize("way", [shared_prompts, few_sequences(1), few_sequences(200)], ids=["shared", "few", "parts"])
def test_the_last_token_of_a_prompt_may_be_computed_into_a_block_that_all_share(way: Any) -> None:
    """Of a prompt that fills its blocks, all but the last token found in the cache: each row computes that one anew."""
    heads, keys, width, lengths = 4, 2, 64, torch.tensor([64] * 5 + [48] * 3, dtype=torch.int32)
    tables = torch.tensor([[3, 9, 4, 8]] * 5 + [[1, 6, 2, 0]] * 3, dtype=torch.int32)
    generator = torch.Generator().manual_seed(3)
    cache = torch.randn(10, keys, BLOCK, 2 * width, generator=generator).to(DTYPE)
    query = torch.randn(8, heads, width, generator=generator).to(DTYPE)
    key, value = torch.randn(2, 2, keys, width, generator=generator).to(DTYPE).repeat_interleave(
        torch.tensor([5, 3]), dim=1
    )
    written = cache.clone()
    written[8, :, 15], written[2, :, 15] = (torch.cat([key[row], value[row]], dim=-1) for row in (0, 5))
    out = torch.full((8, heads, width), float("nan"), dtype=DTYPE, device=DEVICE)
    served, tables, lengths = cache.to(DEVICE), tables.to(DEVICE), lengths.to(DEVICE)
    step = way(tables, lengths, heads, keys, width)
    step.attend(*(x.to(DEVICE) for x in (query, key, value)), None, served, tables, lengths, width**-0.5, out)
    expected = exact(query, written, tables.cpu(), lengths.cpu(), width**-0.5)
    assert float((out.cpu().double() - expected).abs().max()) < (2e-6 if INTERPRETED else 2e-2)
    assert torch.equal(served.cpu(), written)


def test_the_rows_of_a_prompt_make_a_tile() -> None:
    from adapters.kernels.attention import SharedPrompts

    tables, lengths = batch_of([(64, [3] * 8), (100, [9] * 7), (50, [2]), (80, [4] * 10)], common=32, padding=2)
    prompts = SharedPrompts(32, 2, 1, 64, BLOCK, 2, torch.device(DEVICE))
    prompts.find(tables.to(DEVICE), lengths.to(DEVICE))
    assert prompts.tiles.item() == 7
    assert prompts.starts.tolist()[:9] == [0, 8, 15, 16, 24, 26, 27, 28, 28]
    assert prompts.shared.tolist()[:28] == [96] * 8 + [128] * 7 + [0] + [112] * 10 + [0] * 2
