"""The kernels of `pipeline/rollout/gumbel.py`: tokens and their log-probabilities from one pass over the logits.

A program reads a block of one row, from which it keeps the token with the largest logit + noise, and the largest logit
and the sum of exponentials that the log-sum-exp is made of; another puts the blocks of a row together. The noise is
what vLLM's kernel (`vllm/v1/worker/gpu/sample/gumbel.py`) draws, by the same operations in the same order: the first
of the four numbers of a Philox call for each token, so three of four are not used. What takes the time is therefore
less the memory than ten rounds of Philox and two logarithms a token.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor
from triton.language.extra import libdevice  # type: ignore[import-not-found]

BLOCK, WARPS = 4096, 8  # tokens of one program, and its warps
LEAST = tl.constexpr(4.6566127342e-10)  # above zero, of what `tl.rand` gives


@triton.jit
def _tempered(logit, temperature):
    if temperature != 0.0 and temperature != 1.0:
        logit = logit / temperature
    return logit


@triton.jit
def _blocks(logits, stride, temperatures, seeds, positions, kept, tokens, vocabulary, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    temperature = tl.load(temperatures + row)
    read = tl.load(logits + row * stride + token, mask=token < vocabulary, other=float("-inf"))
    score = _tempered(read.to(tl.float32), temperature)
    largest = tl.max(score, axis=0)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # of a block in which no token is possible
    total = tl.sum(tl.exp(score - base), axis=0)
    if temperature != 0.0:
        seed = tl.randint(tl.load(seeds + row), tl.load(positions + row))
        uniform = tl.maximum(tl.rand(seed, token), LEAST)
        score += -tl.log(-libdevice.log1p(-uniform))
    best, index = tl.max(score, axis=0, return_indices=True)
    count, at = tl.num_programs(0) * tl.num_programs(1), row * tl.num_programs(1) + block
    tl.store(kept + at, best)
    tl.store(kept + count + at, largest)
    tl.store(kept + 2 * count + at, total)
    tl.store(tokens + at, block * BLOCK + index)


@triton.jit
def _rows(logits, stride, temperatures, kept, tokens, drawn, log_probs, blocks, BLOCKS: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCKS)
    inside, count, at = block < blocks, tl.num_programs(0) * blocks, row * blocks + block
    best = tl.load(kept + at, mask=inside, other=float("-inf"))
    _, index = tl.max(best, axis=0, return_indices=True)  # the first of equals, as within a block
    token = tl.load(tokens + row * blocks + index)
    largest = tl.load(kept + count + at, mask=inside, other=float("-inf"))
    total = tl.load(kept + 2 * count + at, mask=inside, other=0.0)
    top = tl.max(largest, axis=0)
    total = tl.sum(total * tl.exp(largest - top), axis=0)
    score = _tempered(tl.load(logits + row * stride + token).to(tl.float32), tl.load(temperatures + row))
    tl.store(drawn + row, token.to(tl.int64))
    tl.store(log_probs + row, score - top - tl.log(total))


def draw_tokens(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """As `draw`. The tokens of a row of the logits stand side by side in memory."""
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, BLOCK)
    kept = torch.empty(3, rows, blocks, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
    drawn = torch.empty(rows, dtype=torch.int64, device=logits.device)
    log_probs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    stride = logits.stride(0)
    _blocks[(rows, blocks)](
        logits, stride, temperatures, seeds, positions, kept, tokens, vocabulary, BLOCK=BLOCK, num_warps=WARPS
    )
    padded = triton.next_power_of_2(blocks)
    _rows[(rows,)](logits, stride, temperatures, kept, tokens, drawn, log_probs, blocks, BLOCKS=padded, num_warps=1)
    return drawn, log_probs
