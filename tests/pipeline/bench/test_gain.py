"""The direction of the benchmark of what scalars can reach, against computations made apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import TinyLoRAConfig, inject
from adapters.principal import entry_rows
from pipeline.bench.gain import RIDGE, natural_direction, vector_scores
from pipeline.config import ConfigError


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(40, 200), size=st.integers(1, 12))
def test_the_direction_is_the_ridge_solution_with_a_kl_of_one_nat(seed: int, count: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((count, size)) * 10.0 ** generator.integers(-4, 4, size)
    advantages = generator.standard_normal(count)
    fisher = scores.T @ scores / count
    solution = np.linalg.solve(fisher + RIDGE * np.diag(np.diag(fisher)), scores.T @ advantages / count)
    solution *= np.sqrt(2 / (solution @ fisher @ solution))
    found = natural_direction(torch.from_numpy(scores), torch.from_numpy(advantages)).numpy()
    np.testing.assert_allclose(found, solution, rtol=1e-6)
    assert found @ fisher @ found / 2 == pytest.approx(1)


def test_completions_that_earned_the_same_give_no_direction() -> None:
    with pytest.raises(ConfigError, match="every problem earned the same"):
        natural_direction(torch.randn(10, 3), torch.zeros(10))


@pytest.mark.parametrize("groups", [1, 3])
def test_scores_of_entries_become_those_of_the_vector(tiny_model_folder: Path, groups: int) -> None:
    """Against `TinyLoRA.per_row`, which differentiates by v itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    bank = inject(model, TinyLoRAConfig(u=5, groups=groups))
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))

    def backward() -> None:
        logits = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
        logits.gather(-1, ids[:, 1:, None]).sum().backward()

    owners = torch.arange(2).repeat_interleave(11)
    with entry_rows(bank, owners, 2) as entries:
        backward()
    with bank.per_row(owners, 2) as rows:
        backward()
    assert entries.grad is not None and rows.grad is not None
    torch.testing.assert_close(vector_scores(entries.grad, bank), rows.grad.flatten(1), rtol=1e-4, atol=1e-5)
