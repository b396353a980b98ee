"""Log-probabilities without padding and kept logits equal the plain computation, values and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.training.logprobs as logprobs
from adapters import TinyLoRAConfig, inject
from pipeline.training.logprobs import completion_log_probs, kl_k3, packed_rows, token_budget_batches


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    torch.nn.init.normal_(inject(model, TinyLoRAConfig(u=6)).v, std=0.2)
    return model


def padded(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, ...]:
    """TRL's layout: prompts padded on the left, completions on the right."""
    p, c = max(len(prompt) for prompt, _ in rows), max(len(completion) for _, completion in rows)
    prompt_ids, completion_ids = (
        torch.zeros(len(rows), p, dtype=torch.long),
        torch.zeros(len(rows), c, dtype=torch.long),
    )
    prompt_mask, completion_mask = torch.zeros_like(prompt_ids), torch.zeros_like(completion_ids)
    for i, (prompt, completion) in enumerate(rows):
        prompt_ids[i, p - len(prompt) :], prompt_mask[i, p - len(prompt) :] = torch.tensor(prompt), 1
        completion_ids[i, : len(completion)], completion_mask[i, : len(completion)] = torch.tensor(completion), 1
    return prompt_ids, prompt_mask, completion_ids, completion_mask


ROWS = [(list(range(5, 30)), [40, 41, 42, 43, 44, 2]), ([7, 9], [50, 2]), ([11] * 9, [60, 61, 62])]


def reference(model, prompt: list[int], completion: list[int], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    scores = torch.log_softmax(logits, dim=-1)
    return scores.gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1), -(scores.exp() * scores).sum(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1 << 26, 700])
def test_values_and_gradients_equal_the_plain_ones(model, monkeypatch, temperature: float, chunk: int) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    rows, prompts, completions = packed_rows(*padded(ROWS))
    values, entropies = completion_log_probs(model, rows, prompts, completions, 6, temperature)
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


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
@settings(deadline=None)
def test_batches_cover_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(token_budget_batches(torch.tensor(lengths), budget))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


def test_no_rows_give_no_batches() -> None:
    assert list(token_budget_batches(torch.empty(0, dtype=torch.long), 100)) == []


def test_k3_estimates_the_divergence_and_ignores_missing_tokens() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    ratio = (q.log() - p.log())[drawn]
    assert kl_k3(ratio, torch.ones_like(ratio)) == pytest.approx(float((p * (p.log() - q.log())).sum()), abs=3e-3)
    assert kl_k3(torch.tensor([float("nan"), 0.0]), torch.ones(2)) == 0.0
    assert kl_k3(torch.tensor([5.0]), torch.zeros(1)) == 0.0
