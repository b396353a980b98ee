"""The kernels of `pipeline/rollout/gumbel.py`: tokens and their log-probabilities from one pass over the logits.

A program reads a block of one row. It finds the token with the largest logit + noise, and the largest logit and the sum
of exponentials that the log-sum-exp is made of; another puts the blocks of a row together.

The noise is what vLLM's kernel draws (`vllm/v1/worker/gpu/sample/gumbel.py`): for every token the first of the four
numbers of a Philox call. The other three are thrown away, so arithmetic takes more of the time than memory does. Exact
logarithms are avoided: the hardware's rough ones find the best token of a block. Only where others are so near that
rounding could decide, about once in a thousand blocks, is the block computed again as vLLM does it; the best tokens of
a row's blocks always are. So the tokens are vLLM's, to the last of them.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor
from triton.language.extra import libdevice  # type: ignore[import-not-found]

BLOCK, WARPS = 2048, 4  # tokens of one program, and its warps
LEAST = tl.constexpr(4.6566127342e-10)  # above zero, of what `tl.rand` gives
NEAR = tl.constexpr(1e-3)  # several times what `_rough_noise` and rounding of scores below a thousand can be off by
ONE = tl.constexpr(1 << 16)  # what a near token counts; its place in the block is added


@triton.jit
def _uniform(seed, token):
    return tl.maximum(tl.rand(seed, token), LEAST)


@triton.jit
def _noise(uniform):
    """-log(-log(1 - u)) as vLLM computes it."""
    return -tl.log(-libdevice.log1p(-uniform))


@triton.jit
def _rough_noise(uniform):
    """The same to 1e-4."""
    series = uniform + uniform * (0.5 * uniform)
    return -libdevice.fast_logf(tl.where(uniform < 1.0 / 256, series, -libdevice.fast_logf(1.0 - uniform)))


@triton.jit
def _tempered(logit, temperature):
    if temperature != 0.0 and temperature != 1.0:
        logit = logit / temperature
    return logit


@triton.jit
def _blocks(logits, stride, temperatures, seeds, positions, kept, tokens, vocabulary, BLOCK: tl.constexpr):
    row, block, place = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    token = block * BLOCK + place
    temperature = tl.load(temperatures + row)
    seed = tl.randint(tl.load(seeds + row), tl.load(positions + row))
    score = tl.load(logits + row * stride + token, mask=token < vocabulary, other=float("-inf")).to(tl.float32)
    score = _tempered(score, temperature)
    largest = tl.max(score, axis=0)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # of a block in which no token is possible
    total = tl.sum(libdevice.fast_expf(score - base), axis=0)
    rough = score
    if temperature != 0.0:
        rough = score + _rough_noise(_uniform(seed, token))
    near = tl.sum(tl.where(rough >= tl.max(rough, axis=0) - NEAR, ONE + place, 0), axis=0)  # the best is near itself
    best = near % ONE  # the only one's place
    if near >= 2 * ONE:
        if temperature != 0.0:
            score += _noise(_uniform(seed, token))
        _, best = tl.max(score, axis=0, return_indices=True)  # the first of equals
    at, count = row * tl.num_programs(1) + block, tl.num_programs(0) * tl.num_programs(1)
    tl.store(kept + at, largest)
    tl.store(kept + count + at, total)
    tl.store(tokens + at, block * BLOCK + best)


@triton.jit
def _rows(logits, stride, temperatures, seeds, positions, kept, tokens, drawn, log_probs, blocks, BLOCKS: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCKS)
    inside, at, count = block < blocks, row * blocks + block, tl.num_programs(0) * blocks
    temperature = tl.load(temperatures + row)
    token = tl.load(tokens + at, mask=inside, other=0)
    score = tl.load(logits + row * stride + token, mask=inside, other=float("-inf")).to(tl.float32)
    score = _tempered(score, temperature)
    noisy = score
    if temperature != 0.0:
        seed = tl.randint(tl.load(seeds + row), tl.load(positions + row))
        noisy = score + _noise(_uniform(seed, token))
    _, best = tl.max(noisy, axis=0, return_indices=True)
    largest = tl.load(kept + at, mask=inside, other=float("-inf"))
    total = tl.load(kept + count + at, mask=inside, other=0.0)
    top = tl.max(largest, axis=0)
    total = tl.sum(total * tl.exp(largest - top), axis=0)
    chosen = tl.sum(tl.where(block == best, score, 0.0), axis=0)
    tl.store(drawn + row, tl.sum(tl.where(block == best, token, 0), axis=0).to(tl.int64))
    tl.store(log_probs + row, chosen - top - tl.log(total))


def draw_tokens(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """As `draw` of `gumbel.py`. The logits of a row stand side by side in memory."""
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, BLOCK)
    kept = torch.empty(2, rows, blocks, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
    drawn = torch.empty(rows, dtype=torch.int64, device=logits.device)
    log_probs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    given = logits, logits.stride(0), temperatures, seeds, positions
    _blocks[(rows, blocks)](*given, kept, tokens, vocabulary, BLOCK=BLOCK, num_warps=WARPS)
    padded = triton.next_power_of_2(blocks)
    _rows[(rows,)](*given, kept, tokens, drawn, log_probs, blocks, BLOCKS=padded, num_warps=1)
    return drawn, log_probs
