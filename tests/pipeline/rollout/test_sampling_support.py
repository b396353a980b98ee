"""Top-k and top-p: the truncated distribution and its gradients, against a computation token by token in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.training.logprobs as logprobs
from adapters import TinyLoRAConfig, inject
from pipeline.rollout.sampling_support import WHOLE, Truncation
from pipeline.training.logprobs import completion_log_probs
from pipeline.training.packing import packed

TRUNCATIONS = [Truncation(top_k=5), Truncation(top_p=0.7), Truncation(top_k=6, top_p=0.8)]


def support(scores: torch.Tensor, truncation: Truncation) -> list[int]:
    """The tokens that can be drawn, for one row of scores in float64: one after another, the likeliest first."""
    order = sorted(range(len(scores)), key=lambda token: -float(scores[token]))
    order = order[: truncation.top_k] if truncation.top_k else order
    mass = scores.double()[order].softmax(dim=0)
    held, kept = 0.0, []
    for token, probability in zip(order, mass.tolist(), strict=True):
        if held >= truncation.top_p:
            break
        kept.append(token)
        held += probability
    return kept


def truncated_log_probs(scores: torch.Tensor, truncation: Truncation, drawn: int) -> torch.Tensor:
    """log p of one row of scores, −inf out of the support, which always has `drawn`."""
    if not truncation:
        return scores.log_softmax(dim=0)
    inside = sorted({*support(scores.detach(), truncation), drawn})
    masked = torch.full_like(scores, -torch.inf)
    masked[inside] = scores[inside]
    return masked.log_softmax(dim=0)


@given(
    size=st.integers(2, 40), top_k=st.integers(0, 50), top_p=st.floats(0.01, 0.99), seed=st.integers(0, 10**6),
    spread=st.floats(0.1, 10),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_the_support_is_that_of_the_definition(size: int, top_k: int, top_p: float, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(3, size, generator=generator, dtype=torch.float64)
    truncation = Truncation(top_k if top_k != 1 else 2, top_p)
    drawn = torch.randint(size, (3,), generator=generator)
    for row, (kept, with_drawn) in enumerate(zip(truncation.of(scores), truncation.of(scores, drawn), strict=True)):
        expected = set(support(scores[row], truncation))
        assert set((kept == scores[row]).nonzero().flatten().tolist()) == expected and expected
        assert set((with_drawn == scores[row]).nonzero().flatten().tolist()) == expected | {int(drawn[row])}


def test_nothing_is_left_out_where_nothing_is_told() -> None:
    assert not WHOLE and all(TRUNCATIONS) and Truncation(top_k=2)
    scores = torch.tensor([[2.0, 2.0, 1.0, 0.0]])
    assert (Truncation(top_k=9).of(scores) == scores).all()
    assert (Truncation(top_k=1).of(scores)[0] == scores[0]).tolist() == [
        True,
        True,
        False,
        False,
    ]  # equal ones together


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float64)
    torch.nn.init.normal_(inject(model, TinyLoRAConfig(u=6)).v, std=0.2)
    return model


@pytest.mark.parametrize("truncation", [WHOLE, *TRUNCATIONS], ids=["whole", "top-k", "top-p", "both"])
@pytest.mark.parametrize("temperature, chunk", [(1.0, 1 << 26), (0.7, 700)])
def test_log_probabilities_entropies_and_both_gradients(
    model: Any, monkeypatch: pytest.MonkeyPatch, truncation: Truncation, temperature: float, chunk: int
) -> None:
    """∂/∂v of Σ a log p + b H in closed form against autograd through the model's own logits."""
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    prompts, sampled = [list(range(5, 20)), [7, 9]], [[40, 41, 42, 2], [50, 51]]
    pack = packed(prompts, sampled, "cpu")
    values, entropies = completion_log_probs(model, pack, 4, temperature, truncation, True)
    a, b = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (values * a + entropies * b).sum().backward()
    gradient, model.tinylora.v.grad = model.tinylora.v.grad.clone(), None
    total = torch.zeros((), dtype=torch.float64)
    for row, (prompt, completion) in enumerate(zip(prompts, sampled, strict=True)):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double() / temperature
        for place, token in enumerate(completion):
            log_p = truncated_log_probs(logits[place], truncation, token)
            known = log_p[log_p > -torch.inf]
            entropy = -(known.exp() * known).sum()
            assert values[row, place].item() == pytest.approx(log_p[token].item(), abs=1e-5)
            assert entropies[row, place].item() == pytest.approx(entropy.item(), abs=1e-5)
            total = total + a[row, place] * log_p[token] + b[row, place] * entropy
    total.backward()
    torch.testing.assert_close(gradient, model.tinylora.v.grad, rtol=1e-4, atol=1e-6)
    model.tinylora.v.grad = None


def test_entropies_have_a_gradient_only_if_asked_for(model: Any) -> None:
    values, entropies = completion_log_probs(model, packed([[7, 9]], [[50, 51]], "cpu"), 2, 1.0)
    assert values.requires_grad and not entropies.requires_grad
