"""The kernel that draws tokens gives those of the torch formula, and the log-probabilities of float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.rollout import drawing

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
TEMPERATURES = [1.0, 0.7, 0.0, 1.3]


def inputs(rows: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits in wider rows, with impossible tokens at the end and in between, and one temperature after the other."""
    generator = torch.Generator("cuda").manual_seed(rows + vocabulary)
    wide = 3 * torch.randn(rows, vocabulary + 64, device="cuda", generator=generator)
    logits = wide[:, :vocabulary]
    logits[:, -271:] = -torch.inf
    logits[:, 4000:13_000] = -torch.inf  # whole blocks
    seeds = torch.randint(-(2**62), 2**62, (rows,), device="cuda", generator=generator)
    positions = torch.randint(0, 10_000, (rows,), device="cuda", generator=generator)
    temperatures = torch.tensor(TEMPERATURES, device="cuda").repeat(rows // 4 + 1)[:rows]
    return logits, temperatures, seeds, positions


def draw(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """With a record for every row, in reverse order."""
    every = torch.arange(len(logits), device=logits.device).flip(0)
    return drawing.draw(logits, temperatures.flip(0), seeds.flip(0), every, positions.flip(0), every)


def tempered(logits: Tensor, temperatures: Tensor) -> Tensor:
    return logits / torch.where(temperatures > 0, temperatures, 1.0)[:, None]


@pytest.mark.parametrize("vocabulary", [151_936, 49_152, 50_257, 9_001, 100])
@pytest.mark.parametrize("rows", [1, 7, 512])
def test_kernel_matches_the_torch_formula(rows: int, vocabulary: int) -> None:
    logits, temperatures, seeds, positions = inputs(rows, max(vocabulary, 14_000))
    logits = logits[:, :vocabulary]
    before = logits.clone()
    tokens, log_probs = draw(logits, temperatures, seeds, positions)
    assert torch.equal(logits, before)
    assert tokens.dtype == torch.int64 and log_probs.dtype == torch.float32
    expected, _ = draw(logits.cpu(), *(part.cpu() for part in (temperatures, seeds, positions)))
    assert (tokens.cpu() != expected).sum() <= 1  # sums in float32 differ in their last bits
    scores = tempered(logits.double(), temperatures.double())
    exact = scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(log_probs.double(), exact, atol=1e-5, rtol=0)


def test_tokens_have_the_distribution() -> None:
    """Over possible tokens of two blocks, with others between them."""
    draws, places = 100_000, torch.tensor([0, 3, 2047, 2048, 4095, 4999])
    scores = torch.tensor([0.0, 2.0, -1.0, 1.0, 3.0, -2.0])
    logits = torch.full((5000,), -torch.inf).index_copy(0, places, scores).cuda().expand(draws, -1)
    ones, seeds = torch.ones(draws, device="cuda"), torch.full((draws,), 7, device="cuda")
    tokens, _ = draw(logits, ones, seeds, torch.arange(draws, device="cuda"))
    counts = torch.bincount(tokens, minlength=5000).cpu()
    assert counts[places].sum() == draws
    wanted = scores.double().softmax(0) * draws
    assert ((counts[places] - wanted) ** 2 / wanted).sum() < 5 + 5 * 10**0.5


def test_equal_scores_give_the_first_token() -> None:
    """Greedily, within a block and across blocks."""
    logits = torch.zeros(3, 20_000, device="cuda")
    logits[1, 7:] = 5.0
    logits[2, [9_000, 19_000]] = 5.0
    nothing = torch.zeros(3, dtype=torch.int64, device="cuda")
    tokens, _ = draw(logits, torch.zeros(3, device="cuda"), nothing, nothing)
    assert tokens.tolist() == [0, 7, 9_000]
