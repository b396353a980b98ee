"""Drawing tokens by inverting the cumulative distribution, with one random number a token drawn.

The token is the one in which the running sum of softmax(logits / temperature) passes u, which is uniform in [0, 1)
(Devroye, "Non-Uniform Random Variate Generation", 1986, chapter III.2). u is a function of a request's seed and the
place of its last token (`uniform`), so no generator has a state, and a completion does not depend on what is drawn
beside it. vLLM draws a number for every token of the vocabulary instead, which takes a GPU several times as long as
reading the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
ROUNDS, FACTORS, KEYS = 10, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def draw(
    logits: Tensor, temperatures: Tensor, seeds: Tensor, slots: Tensor, positions: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """One token for every row, int64 (n,), and its log-probability at the row's temperature, float32 (n,).

    logits (n, vocabulary) float32, −inf for tokens that are not possible, which are never drawn. temperatures float32,
    seeds int64: records, of which `slots` (n,) are the rows'; at temperature 0 the token is the likeliest, of equals
    the first, and its log-probability that at temperature 1. positions int64: of tokens, of which `places` (n,) are the
    rows' last.
    """
    if logits.is_cuda:
        from adapters.kernels.sampling import draw_tokens

        return draw_tokens(logits, temperatures, seeds, slots, positions, places)
    temperatures, seeds, positions = temperatures[slots], seeds[slots], positions[places]
    hot = temperatures != 0
    scores = (logits / torch.where(hot, temperatures, 1.0)[:, None]).double()
    sums = scores.softmax(dim=-1).cumsum(dim=-1)
    passed = (sums <= (uniform(seeds, positions) * sums[:, -1])[:, None]).sum(dim=-1)
    tokens = torch.where(hot, passed, scores.argmax(dim=-1))
    return tokens, scores.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].float()


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """Numbers in [0, 1), float64 (n,): 53 bits of the first two words that Philox makes of the position, with the seed
    as key."""
    first, second = philox(words(positions), words(seeds))[:2]
    return ((first << 21) + (second >> 11)).double() * 2.0**-53


def words(number: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of int64 numbers."""
    return number & WORD, (number >> 32) & WORD


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four words of Philox-4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).

    Words are 32 bits in int64, of shapes that broadcast. Words of the counter that are not given are 0.
    """
    a, b, c, d = (*counter, *(torch.zeros_like(counter[0]) for _ in range(4 - len(counter))))
    first, second = key
    for _ in range(ROUNDS):
        (low_a, high_a), (low_c, high_c) = words(a * FACTORS[0]), words(c * FACTORS[1])
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
        first, second = (first + KEYS[0]) & WORD, (second + KEYS[1]) & WORD
    return a, b, c, d
