"""Truncated singular value decomposition: right values, small residuals, canonical signs, cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapters import AdapterError
from adapters.base import dense_weight
from adapters.factors import RESIDUAL_LIMIT, cached_factors, compute_factors, fingerprint


def factored(weights: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left vectors (n, out, r), values (n, r) and right vectors (n, r, in) of a batch of weights."""
    layers = {}
    for index, weight in enumerate(weights):
        layers[str(index)] = nn.Linear(*weight.mT.shape, bias=False)
        layers[str(index)].weight.data = weight
    factors = list(compute_factors(layers, rank).values())
    sigma = torch.stack([factor.sigma for factor in factors])
    left = torch.stack([factor.left for factor in factors]) / sigma.unsqueeze(1)
    return left, sigma, torch.stack([factor.right for factor in factors])


@given(rows=st.integers(1, 60), columns=st.integers(1, 60), rank=st.integers(1, 4), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_agrees_with_the_full_decomposition(rows: int, columns: int, rank: int, seed: int) -> None:
    rank = min(rank, rows, columns)
    weights = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    left, sigma, right = factored(weights, rank)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(weights)[:, :rank], rtol=1e-5, atol=1e-5)
    eye = torch.eye(rank).expand(2, -1, -1)
    torch.testing.assert_close(left.mT @ left, eye, rtol=0, atol=1e-4)
    torch.testing.assert_close(right @ right.mT, eye, rtol=0, atol=1e-4)
    residual = (weights @ right.mT - left * sigma.unsqueeze(1)).norm(dim=1) / sigma
    assert residual.max() <= RESIDUAL_LIMIT


def test_flat_spectrum_of_a_larger_random_matrix_converges() -> None:
    weights = torch.randn(1, 400, 300, generator=torch.Generator().manual_seed(3)) * 0.02
    left, sigma, right = factored(weights, 2)
    torch.testing.assert_close(sigma[0], torch.linalg.svdvals(weights[0])[:2], rtol=1e-5, atol=0)


@pytest.mark.parametrize("rank", [4, 8, 16])
@pytest.mark.parametrize("top", [1.3, 30.0])
def test_flat_spectra_below_an_outlier_converge(rank: int, top: float) -> None:
    """Trained weights have one or a few large singular values, and then hundreds that differ by less than a percent."""
    generator = torch.Generator().manual_seed(rank)
    values = 0.02 * torch.exp(-0.001 * torch.arange(600))
    values[0] *= top
    frame, _ = torch.linalg.qr(torch.randn(2, 900, 600, generator=generator))
    other, _ = torch.linalg.qr(torch.randn(2, 600, 600, generator=generator))
    weights = frame * values @ other
    left, sigma, right = factored(weights, rank)
    torch.testing.assert_close(sigma, values[:rank].expand(2, -1), rtol=5e-4, atol=0)
    residual = (weights @ right.mT - left * sigma.unsqueeze(1)).norm(dim=1) / sigma
    assert residual.max() <= RESIDUAL_LIMIT / 2


def test_signs_do_not_depend_on_how_the_vectors_were_found() -> None:
    weight = torch.randn(1, 40, 30, generator=torch.Generator().manual_seed(1))
    left, _, right = factored(weight, 3)
    largest = left[0].gather(0, left[0].abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()
    flipped_left, _, flipped_right = factored(-weight, 3)  # flips every right vector, no left one
    torch.testing.assert_close(flipped_left, left, rtol=0, atol=1e-3)
    torch.testing.assert_close(flipped_right, -right, rtol=0, atol=1e-3)


def test_rank_beyond_the_matrix_is_an_error() -> None:
    with pytest.raises(AdapterError, match="rank 5 exceeds"):
        factored(torch.randn(1, 4, 9), 5)


def linears(seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {"a.q_proj": nn.Linear(24, 16), "a.k_proj": nn.Linear(24, 8), "b.q_proj": nn.Linear(24, 16)}


def test_cache_gives_the_same_factors_and_separates_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TINYLORA_CACHE", str(tmp_path))
    first, base, path = cached_factors(linears(), 2)
    again, base_again, path_again = cached_factors(linears(), 2)
    assert (base, path) == (base_again, path_again) and len(list(tmp_path.iterdir())) == 1
    for name in first:
        assert torch.equal(first[name].left, again[name].left) and torch.equal(first[name].right, again[name].right)
    assert cached_factors(linears(seed=1), 2)[1:] != (base, path)
    assert cached_factors(linears(), 3)[2] != path


def test_fingerprint_sees_values_names_and_not_the_storage_type() -> None:
    weight = torch.randn(8, 8).bfloat16()
    assert fingerprint([("a", weight)]) == fingerprint([("a", weight.float())])
    assert fingerprint([("a", weight)]) != fingerprint([("b", weight)])
    assert fingerprint([("a", weight)]) != fingerprint([("a", weight * 2)])


def test_four_bit_layers_are_factored_as_they_compute() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    plain = nn.Linear(64, 64, bias=False)
    quantised = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    quantised.load_state_dict(plain.state_dict())
    quantised = quantised.to("cpu")
    dense = dense_weight(quantised)
    assert dense.shape == (64, 64) and not torch.equal(dense, plain.weight)
    x = torch.randn(3, 64)
    torch.testing.assert_close(quantised(x), x @ dense.T, rtol=1e-4, atol=1e-4)
