"""Log-probabilities without padding and kept logits equal the plain computation, values and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pipeline.training.logprobs as logprobs
from adapters import TinyLoRAConfig, inject
from pipeline.training.logprobs import completion_log_probs, kl_k3, log_probs_without_gradient
from pipeline.training.packing import packed


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    torch.nn.init.normal_(inject(model, TinyLoRAConfig(u=6)).v, std=0.2)
    return model


ROWS = [(list(range(5, 30)), [40, 41, 42, 43, 44, 2]), ([7, 9], [50, 2]), ([11] * 9, [60, 61, 62]), ([7, 9], [51, 8])]


def reference(model, prompt: list[int], completion: list[int], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    scores = torch.log_softmax(logits, dim=-1)
    return scores.gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1), -(scores.exp() * scores).sum(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1 << 26, 700])
def test_values_and_gradients_equal_the_plain_ones(model, monkeypatch, temperature: float, chunk: int) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    pack = packed([prompt for prompt, _ in ROWS], [completion for _, completion in ROWS], "cpu")
    values, entropies = completion_log_probs(model, pack, 6, temperature)
    weights = torch.linspace(-1, 1, values.numel()).view_as(values)
    (values * weights).sum().backward()
    gradient, model.tinylora.v.grad = model.tinylora.v.grad.clone(), None
    expected_loss = torch.zeros(())
    for i, (prompt, completion) in enumerate(ROWS):
        expected, entropy = reference(model, prompt, completion, temperature)
        n = len(completion)
        torch.testing.assert_close(values[i, :n], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(entropies[i, :n], entropy, rtol=1e-4, atol=1e-5)
        assert (values[i, n:] == 0).all()
        expected_loss = expected_loss + (expected * weights[i, :n]).sum()
    expected_loss.backward()
    torch.testing.assert_close(gradient, model.tinylora.v.grad, rtol=1e-3, atol=1e-5)
    model.tinylora.v.grad = None


def test_float16_keeps_gradients_that_it_has_no_numbers_for(tiny_model_folder: Path) -> None:
    """A token's weight in a large batch is below what float16 knows; copies of `v` get their own share as well."""
    from transformers import AutoModelForCausalLM

    pack = packed([prompt for prompt, _ in ROWS], [completion for _, completion in ROWS], "cpu")
    found = {}
    for dtype in (torch.float32, torch.float16):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=dtype)
        bank = inject(model, TinyLoRAConfig(u=6))
        with torch.no_grad():
            bank.v.copy_(torch.linspace(-0.2, 0.2, 6))
        for weight in (1e-8, 100.0):
            bank.v.grad = None
            values, _ = completion_log_probs(model, pack, 6, 1.0)
            (values * weight * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
            with bank.per_row(pack.owners, pack.count) as rows:
                values, entropies = completion_log_probs(model, pack, 6, 1.0, entropy_gradient=True)
                (weight * (values + entropies)[1:]).sum().backward()
            found[dtype, weight] = bank.v.grad / weight, rows.grad / weight
            bank.v.grad = None
            values, _ = completion_log_probs(model, pack, 6, 1.0)
            (values * 0).sum().backward()
            assert (bank.v.grad == 0).all()
    for weight in (1e-8, 100.0):
        for exact, half in zip(found[torch.float32, 1e-8], found[torch.float16, weight], strict=True):
            assert float((half - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("budget", [1, 30, 1000])
def test_no_budget_changes_a_value_and_empty_completions_have_none(model, budget: int) -> None:
    prompts, completions = (list(part) for part in zip(*ROWS, ([7, 9], []), strict=True))
    values, entropies = log_probs_without_gradient(model, prompts, completions, 6, 1.0, budget)
    with torch.no_grad():
        expected = completion_log_probs(model, packed(prompts[:4], completions[:4], "cpu"), 6, 1.0)
    for found, whole in zip((values, entropies), expected, strict=True):
        torch.testing.assert_close(found[:4], whole, rtol=1e-5, atol=1e-5)
        assert (found[4] == 0).all()


def test_k3_estimates_the_divergence_and_ignores_missing_tokens() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    ratio = (q.log() - p.log())[drawn]
    assert kl_k3(ratio, torch.ones_like(ratio)) == pytest.approx(float((p * (p.log() - q.log())).sum()), abs=3e-3)
    assert kl_k3(torch.tensor([float("nan"), 0.0]), torch.ones(2)) == 0.0
    assert kl_k3(torch.tensor([5.0]), torch.zeros(1)) == 0.0
