"""The kernels of `pipeline/rollout/drawing.py`: tokens and their log-probabilities from one pass over the logits.

A program reads a block of one row, and keeps its largest logit and the sum of exponentials. With these, another program
finds the block of a row in which the running sum passes the random number, and reads that block again to find the
token.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

BLOCK, WARPS = 2048, 4  # tokens of one program, and its warps


@triton.jit
def _scores(logits, stride, temperature, row, token, vocabulary):
    """logits / temperature of tokens of a row; −inf past the end."""
    score = tl.load(logits + row * stride + token, mask=token < vocabulary, other=float("-inf")).to(tl.float32)
    if temperature != 0.0 and temperature != 1.0:
        score = score / temperature
    return score


@triton.jit
def _blocks(logits, stride, temperatures, slots, kept, vocabulary, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperatures + tl.load(slots + row))
    score = _scores(logits, stride, temperature, row, block * BLOCK + tl.arange(0, BLOCK), vocabulary)
    largest = tl.max(score, axis=0)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # of a block in which no token is possible
    at, count = row * tl.num_programs(1) + block, tl.num_programs(0) * tl.num_programs(1)
    tl.store(kept + at, largest)
    tl.store(kept + count + at, tl.sum(tl.exp(score - base), axis=0))


@triton.jit
def _uniform(seed, position):
    """As `uniform` of `drawing.py`."""
    first, second, _, _ = tl.randint4x(seed, position)
    first, second = first.to(tl.uint32, bitcast=True), second.to(tl.uint32, bitcast=True)
    return ((first.to(tl.int64) << 21) + (second.to(tl.int64) >> 11)).to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def _pick(weight, share, WIDTH: tl.constexpr):
    """The place at which the running sum of weights (WIDTH,) float64 passes a share of the whole, never one of weight
    0, and which share of the weight there is passed."""
    place = tl.arange(0, WIDTH)
    sums = tl.cumsum(weight, 0)
    target = share * tl.max(sums, axis=0)
    last = tl.max(tl.where(weight > 0, place, 0), axis=0)  # should rounding let nothing pass
    found = tl.min(tl.where((sums > target) & (weight > 0), place, last), axis=0)
    own = tl.sum(tl.where(place == found, weight, 0.0), axis=0)
    before = tl.sum(tl.where(place == found, sums, 0.0), axis=0) - own
    return found, tl.minimum(tl.maximum((target - before) / own, 0.0), 1.0)


@triton.jit
def _rows(
    logits, stride, temperatures, slots, seeds, positions, places, kept, drawn, log_probs, vocabulary, blocks,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCKS)
    at, count = row * blocks + block, tl.num_programs(0).to(tl.int64) * blocks
    largest = tl.load(kept + at, mask=block < blocks, other=float("-inf"))
    total = tl.load(kept + count + at, mask=block < blocks, other=0.0).to(tl.float64)
    top = tl.max(largest, axis=0)
    weight = total * tl.exp(largest - top).to(tl.float64)
    whole = tl.sum(weight, axis=0)
    slot = tl.load(slots + row)
    temperature = tl.load(temperatures + slot)
    share = _uniform(tl.load(seeds + slot), tl.load(positions + tl.load(places + row)))
    if temperature == 0.0:
        weight, share = (largest == top).to(tl.float64), share * 0.0
    chosen, share = _pick(weight, share, BLOCKS)
    score = _scores(logits, stride, temperature, row, chosen * BLOCK + tl.arange(0, BLOCK), vocabulary)
    weight = tl.exp(score - top).to(tl.float64)
    if temperature == 0.0:
        weight, share = (score == top).to(tl.float64), share * 0.0
    place, _ = _pick(weight, share, BLOCK)
    score = tl.sum(tl.where(tl.arange(0, BLOCK) == place, score, 0.0), axis=0)
    tl.store(drawn + row, (chosen * BLOCK + place).to(tl.int64))
    tl.store(log_probs + row, ((score - top).to(tl.float64) - tl.log(whole)).to(tl.float32))


def draw_tokens(
    logits: Tensor, temperatures: Tensor, seeds: Tensor, slots: Tensor, positions: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """As `draw` of `drawing.py`. The logits of a row stand side by side in memory."""
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, BLOCK)
    kept = torch.empty(2, rows, blocks, dtype=torch.float32, device=logits.device)
    drawn = torch.empty(rows, dtype=torch.int64, device=logits.device)
    log_probs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    given = logits, logits.stride(0), temperatures, slots
    _blocks[(rows, blocks)](*given, kept, vocabulary, BLOCK=BLOCK, num_warps=WARPS)
    padded = triton.next_power_of_2(blocks)
    _rows[(rows,)](
        *given, seeds, positions, places, kept, drawn, log_probs, vocabulary, blocks,
        BLOCKS=padded, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return drawn, log_probs
