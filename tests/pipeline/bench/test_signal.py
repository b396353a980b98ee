"""The squared signal: its estimate against the one it was made with, and which entries a band holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.bench.gain import RIDGE, Graded
from pipeline.bench.signal import RULES, _cosines, _signals, band, bands, batch_cosine, squared_signal
from pipeline.config import Settings, resolved


def test_the_estimate_is_unbiased_and_its_error_right() -> None:
    """Scores of known F, and advantages that depend on them: g = E[A s] and gᵀ(F + ridge)⁻¹g are known."""
    generator = np.random.default_rng(0)
    size, groups, group = 6, 60, 8
    mixing = generator.standard_normal((size, size)) * np.array([1.0, 1e3, 1e-2, 5.0, 1.0, 1.0])
    slope = np.linalg.pinv(mixing).T @ np.array([0.05, 0.0, 0.02, 0.0, 0.0, 0.0])
    fisher = mixing @ mixing.T
    gradient = fisher @ slope
    true = gradient @ np.linalg.solve(fisher + RIDGE * np.diag(np.diag(fisher)), gradient)
    found = []
    for _ in range(400):
        scores = generator.standard_normal((groups * group, size)) @ mixing.T
        rewards = scores @ slope + 0.5 * generator.standard_normal(groups * group)
        grouped = rewards.reshape(groups, group)
        advantages = (grouped - grouped.mean(1, keepdims=True)).ravel() * group / (group - 1)
        found.append(squared_signal(torch.from_numpy(scores), torch.from_numpy(advantages), group))
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(true, abs=4 * values.std() / 20 + 0.02 * true)
    assert errors.mean() == pytest.approx(values.std(), rel=0.15)


def test_the_cosine_is_that_of_many_batches() -> None:
    """Against the cosines of batches that are drawn: a few short completions whose weight is large spoil them."""
    generator = np.random.default_rng(1)
    size, groups, group, prompts = 4, 6400, 8, 32
    scores = generator.standard_normal((groups * group, size))
    rewards = scores @ np.array([0.3, 0.0, -0.1, 0.0]) + generator.standard_normal(groups * group)
    short = generator.random(groups * group) < 0.01
    weights = np.where(short, 30.0, 1.0)
    grouped = rewards.reshape(groups, group)
    advantages = (grouped - grouped.mean(1, keepdims=True)).ravel() * group / (group - 1)

    def cosine(weighted: np.ndarray) -> float:
        gradient = (scores * advantages[:, None]).mean(0)
        batches = (scores * weighted[:, None]).reshape(-1, prompts * group, size).mean(1)
        return (batches @ gradient).mean() / np.sqrt((batches**2).sum(1).mean() * (gradient @ gradient))

    for weighted in (advantages, advantages * weights):
        s, a, w = (torch.from_numpy(each) for each in (scores, advantages, weighted))
        value, error = batch_cosine(s, a, w, group, prompts)
        assert value == pytest.approx(cosine(weighted), abs=0.05)
        assert 0 < error < 0.05
    assert cosine(advantages) > cosine(advantages * weights) + 0.2


def test_bands_are_blocks_of_the_mixing_matrix() -> None:
    assert bands(16) == [(0, 2), (0, 4), (0, 8), (0, 16), (4, 8), (8, 12), (12, 16)]
    assert bands(4) == [(0, 2), (0, 4)]
    entries = torch.arange(2 * 3 * 36).view(2, 3, 36)
    found = band(entries, 2, 5)
    assert found.shape == (2, 3, 9)
    assert found[1, 2].tolist() == [int(entries[1, 2, 6 * a + b]) for a in (2, 3, 4) for b in (2, 3, 4)]


def test_signal_is_found_where_it_was_put() -> None:
    """Rewards that follow the score of one entry among the singular directions 4 to 7, which varies most there."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1600, 3, 64, generator=generator)
    place = scores[:, 1, 8 * 5 + 6]
    place *= 4  # scaling is undone by the rules; entries that vary with it make it a component
    scores[:, :, 8 * 5 + 4 : 8 * 5 + 7] += place.view(-1, 1, 1)
    passed = (place / 4 + torch.randn(1600, generator=generator) > 0).float()
    tokens = torch.full((1600,), 50)
    settings = Settings(u=3, rank=8, num_generations=8, task="code", dataset="starter")
    config = resolved(settings, starter=True, gpu=False)
    found = dict(_signals(Graded(scores, passed, passed, tokens), config))
    cosines = dict(_cosines(Graded(scores, passed, passed, tokens), config))
    assert len(cosines) == 4 and all(0.5 < cosine < 1 for cosine in cosines.values())
    by_band = {text.split(":")[0]: value for text, value in found.items()}
    assert len(by_band) == len(found) == 4 * len(RULES)
    assert by_band["singular directions 4 to 7, principal"] > 0.1
    assert by_band["singular directions 0 to 7, principal"] > 0.1
    assert abs(by_band["singular directions 0 to 3, principal"]) < 0.02
