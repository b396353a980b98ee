"""The kernel that draws tokens gives vLLM's tokens, the torch formula's, and the log-probabilities of float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.rollout.gumbel import draw, uniform

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


def tempered(logits: Tensor, temperatures: Tensor) -> Tensor:
    return logits / torch.where(temperatures > 0, temperatures, 1.0)[:, None]


@pytest.mark.parametrize("vocabulary", [151_936, 49_152, 50_257])
@pytest.mark.parametrize("rows", [1, 7, 512])
def test_tokens_are_vllms_and_log_probs_are_exact(rows: int, vocabulary: int) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.v1.worker.gpu.sample.gumbel import apply_temperature, gumbel_sample

    logits, temperatures, seeds, positions = inputs(rows, vocabulary)
    before = logits.clone()
    tokens, log_probs = draw(logits, temperatures, seeds, positions)
    assert torch.equal(logits, before)
    assert tokens.dtype == torch.int64 and log_probs.dtype == torch.float32
    slots = torch.arange(rows, dtype=torch.int32, device="cuda")
    apply_temperature(before, slots, temperatures)
    theirs = gumbel_sample(before, slots, temperatures, seeds, positions, apply_temperature=False)
    assert torch.equal(tokens, theirs)
    scores = tempered(logits.double(), temperatures.double())
    exact = torch.stack([row.log_softmax(0)[token] for row, token in zip(scores, tokens, strict=True)])
    torch.testing.assert_close(log_probs.double(), exact, atol=1e-5, rtol=0)


def test_tokens_are_vllms_where_rounding_decides() -> None:
    """With logits that undo the noise all scores of a row are the same, but for their last bits."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

    _, _, seeds, positions = inputs(256, 50_257)
    logits = torch.log(-torch.log1p(-uniform(seeds, positions, 50_257)))
    ones = torch.ones(256, device="cuda")
    slots = torch.arange(256, dtype=torch.int32, device="cuda")
    theirs = gumbel_sample(logits, slots, ones, seeds, positions, apply_temperature=False)
    assert torch.equal(draw(logits, ones, seeds, positions)[0], theirs)


@pytest.mark.parametrize("vocabulary", [49_152, 9_001, 100])
def test_kernel_matches_the_torch_formula(vocabulary: int) -> None:
    logits, temperatures, seeds, positions = inputs(64, max(vocabulary, 14_000))
    logits = logits[:, :vocabulary]
    tokens, log_probs = draw(logits, temperatures, seeds, positions)
    of_cpu = [part.cpu() for part in (logits, temperatures, seeds, positions)]
    expected, exact = draw(*of_cpu)
    assert (tokens.cpu() != expected).sum() <= 1  # logarithms of GPU and CPU differ in their last bits
    same = tokens.cpu() == expected
    torch.testing.assert_close(log_probs.cpu()[same], exact[same], atol=1e-5, rtol=0)


def test_equal_scores_give_the_first_token() -> None:
    """Greedily, within a block and across blocks."""
    logits = torch.zeros(3, 20_000, device="cuda")
    logits[1, 7:] = 5.0
    logits[2, [9_000, 19_000]] = 5.0
    nothing = torch.zeros(3, dtype=torch.int64, device="cuda")
    tokens, _ = draw(logits, torch.zeros(3, device="cuda"), nothing, nothing)
    assert tokens.tolist() == [0, 7, 9_000]
