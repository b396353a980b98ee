"""Drawing by inversion: the random numbers are Philox's, the tokens have the distribution, and the log-probabilities
are its."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.rollout import drawing
from pipeline.rollout.drawing import philox, uniform

WORDS = [  # counter, key, and words: known answers of the authors' library, kat_vectors of Random123
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, answer", WORDS)
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    first, second = (torch.tensor([part]) for part in key)
    given = philox(tuple(torch.tensor([part]) for part in counter), (first, second))
    assert tuple(word.item() for word in given) == answer


def draw(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """With a record for every row, in reverse order."""
    every = torch.arange(len(logits)).flip(0)
    return drawing.draw(logits, temperatures.flip(0), seeds.flip(0), every, positions.flip(0), every)


def inputs(rows: int, vocabulary: int, temperatures: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits, the last tenth of which are impossible, temperatures in turns, seeds and positions."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(rows, vocabulary, generator=generator)
    logits[:, -(vocabulary // 10) :] = -torch.inf
    seeds = torch.randint(-(2**62), 2**62, (rows,), generator=generator)
    positions = torch.randint(0, 10_000, (rows,), generator=generator)
    return logits, torch.tensor([temperatures[row % len(temperatures)] for row in range(rows)]), seeds, positions


def test_numbers_are_uniform_and_follow_seed_and_position() -> None:
    count = 1 << 18
    seeds, positions = torch.arange(count) // 512 - 100, torch.arange(count) % 512
    numbers = uniform(seeds, positions)
    assert numbers.dtype == torch.float64 and numbers.min() >= 0 and numbers.max() < 1
    for part in (numbers, numbers * 2**24 % 1):  # high bits and low ones
        counts = torch.histc(part, bins=64, min=0, max=1)
        expected = count / 64
        assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * (2 * 63) ** 0.5
    assert len(numbers.unique()) == count
    by_seed = numbers.view(-1, 512)
    assert torch.corrcoef(by_seed[:2]).abs()[0, 1] < 0.25
    assert torch.equal(uniform(seeds[5:6], positions[5:6]), numbers[5:6])
    assert uniform(torch.tensor([7 + 2**40]), positions[:1]) != uniform(torch.tensor([7]), positions[:1])


def test_the_token_is_where_the_running_sum_passes_the_number() -> None:
    logits, temperatures, seeds, positions = inputs(200, 300, [1.0, 0.5, 2.0])
    tokens, _ = draw(logits, temperatures, seeds, positions)
    for row, token in enumerate(tokens.tolist()):
        sums = (logits[row].double() / temperatures[row]).softmax(0).cumsum(0).tolist()
        number = uniform(seeds[row : row + 1], positions[row : row + 1]).item()
        assert (sums[token - 1] if token else 0) <= number * (1 + 1e-12) and number < sums[token] * (1 + 1e-12)


def test_tokens_have_the_distribution_of_their_temperature() -> None:
    draws = 20_000
    logits = torch.tensor([2.0, 1.0, 0.0, -torch.inf, 1.5]).expand(draws, -1)
    for temperature in (0.5, 1.0, 2.0):
        tokens, _ = draw(logits, torch.full((draws,), temperature), torch.full((draws,), 7), torch.arange(draws))
        wanted = (logits[0].double() / temperature).softmax(0) * draws
        counts = torch.bincount(tokens, minlength=5).double()
        assert counts[3] == 0
        possible = wanted > 0
        assert ((counts - wanted) ** 2 / wanted)[possible].sum() < 3 + 5 * 6**0.5


@pytest.mark.parametrize("vocabulary", [151_936, 9_001])
def test_log_probs_are_those_of_float64(vocabulary: int) -> None:
    logits, temperatures, seeds, positions = inputs(6, vocabulary, [1.0, 0.7, 0.0, 1.3])
    tokens, log_probs = draw(logits, temperatures, seeds, positions)
    scale = torch.where(temperatures > 0, temperatures, 1.0).double()
    exact = (logits.double() / scale[:, None]).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert tokens.dtype == torch.int64 and log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.double(), exact, atol=1e-5, rtol=0)
    assert torch.equal(tokens[temperatures == 0], logits[temperatures == 0].argmax(-1))
