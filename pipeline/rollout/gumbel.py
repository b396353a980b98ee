"""Drawing tokens by the Gumbel-max trick, with the random numbers that vLLM draws on a GPU.

The token with the largest logit / temperature − log(−log(u)), u uniform and its own for every token, has the
distribution softmax(logits / temperature) (Gumbel, "Statistical Theory of Extreme Values", 1954; Maddison et al.,
arXiv 1411.0030). u is a function of a request's seed, the place of its last token, and the token (`uniform`), so no
generator has a state, and a completion does not depend on what is drawn beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
ROUNDS, FACTORS, KEYS = 10, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
SCALE = 4.6566127342e-10  # a little below 2^-31, so that no draw is 1 in float32; also the least that is drawn


def draw(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """One token for every row, int64 (n,), and its log-probability at the row's temperature, float32 (n,).

    logits (n, vocabulary) float32, −inf for tokens that are not possible. temperatures (n,) float32; at 0 the token is
    the likeliest, and its log-probability that at temperature 1. seeds, positions (n,) int64.
    """
    if logits.is_cuda:
        from adapters.kernels.sampling import draw_tokens

        return draw_tokens(logits, temperatures, seeds, positions)
    hot = (temperatures != 0)[:, None]
    scores = logits / torch.where(hot, temperatures[:, None], 1.0)
    noise = -torch.log(-torch.log1p(-uniform(seeds, positions, logits.shape[1])))
    tokens = torch.where(hot, scores + noise, scores).argmax(dim=-1)
    return tokens, scores.double().log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].float()


def uniform(seeds: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Numbers in (0, 1), float32 (n, vocabulary): the first word that Philox makes of the token's id, with a key that
    is the first word it makes of the position, with the seed as key. 31 of its bits count, as in Triton's `rand`."""
    row_keys = philox(words(positions), words(seeds))
    tokens = torch.arange(vocabulary, device=seeds.device)
    bits = philox(words(tokens.expand(len(seeds), -1)), (row_keys[:, None], torch.zeros_like(row_keys)[:, None]))
    folded = torch.where(bits > WORD >> 1, WORD - bits, bits)
    return (folded.float() * SCALE).clamp(min=SCALE)


def words(number: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of int64 numbers."""
    return number & WORD, (number >> 32) & WORD


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> Tensor:
    """The first of four words of Philox-4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).

    Words are 32 bits in int64, of shapes that broadcast. Words of the counter that are not given are 0.
    """
    a, b, c, d = (*counter, *(torch.zeros_like(counter[0]) for _ in range(4 - len(counter))))
    first, second = key
    for _ in range(ROUNDS):
        (low_a, high_a), (low_c, high_c) = words(a * FACTORS[0]), words(c * FACTORS[1])
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
        first, second = (first + KEYS[0]) & WORD, (second + KEYS[1]) & WORD
    return a
