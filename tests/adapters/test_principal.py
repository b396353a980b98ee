"""Principal projections: gradients of single entries and components, each against a computation made apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import AdapterError, TinyLoRAConfig, inject, load_checkpoint, save_checkpoint
from adapters.principal import entry_rows, leading_components, principal_projections


def adapted(folder: Path, **config):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inject(model, TinyLoRAConfig(projections="principal", **config))
    return model


def log_prob(model, row: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=row[None, :-1]).logits.log_softmax(-1)
    return logits.gather(-1, row[None, 1:, None]).sum()


def test_entry_gradients_are_those_of_finite_differences(tiny_model_folder: Path) -> None:
    model = adapted(tiny_model_folder, u=3, groups=2)
    bank = model.tinylora
    rows = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    groups = [layer.group for layer in bank.layers]
    with entry_rows(bank, torch.arange(2).repeat_interleave(11), 2) as entries:
        logits = model(input_ids=rows[:, :-1]).logits.log_softmax(-1)
        logits.gather(-1, rows[:, 1:, None]).sum().backward()
    assert entries.grad is not None and entries.grad.shape == (2, len(bank.layers), 4)
    assert [layer.group for layer in bank.layers] == groups and bank.v.grad is None
    step = 1e-2
    with torch.no_grad():
        for index in (0, 4, len(bank.layers) - 1):
            for entry in (0, 1, 3):
                values = []
                for sign in (1, -1):
                    projections = torch.zeros(len(bank.layers), 3, 2, 2)
                    projections[index, 0].view(-1)[entry] = 1
                    bank.set_projections(projections)
                    bank.v.zero_()
                    bank.v[groups[index], 0] = sign * step
                    values.append(torch.stack([log_prob(model, row) for row in rows]))
                difference = (values[0] - values[1]) / (2 * step)
                torch.testing.assert_close(entries.grad[:, index, entry], difference, rtol=0.05, atol=2e-3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(8, 60), size=st.integers(2, 20), data=st.data())
def test_components_are_those_of_a_singular_value_decomposition(seed: int, count: int, size: int, data) -> None:
    """Of rows of one length, which nothing is taken from: components span the leading right singular vectors."""
    wanted = data.draw(st.integers(1, min(count, size) - 1 or 1))
    drawn = np.random.default_rng(seed).standard_normal((count, size)) * np.arange(1, size + 1)
    for _ in range(2000):  # unit variance of entries and unit length of rows at once
        drawn = drawn / np.sqrt((drawn**2).mean(0))
        drawn = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    scaled = drawn / np.sqrt((drawn**2).mean(0))
    _, values, vectors = np.linalg.svd(scaled)
    if wanted < len(values) and values[wanted - 1] - values[wanted] < 1e-3:
        return  # the leading space is not defined
    units = 10.0 ** np.random.default_rng(seed + 1).integers(-6, 6, size)
    components, share = leading_components(torch.from_numpy(drawn * units), wanted)
    coordinates = (components.numpy() * units) * np.sqrt((drawn**2).mean(0))
    projector = vectors[:wanted].T @ vectors[:wanted]
    np.testing.assert_allclose(coordinates @ projector, coordinates, atol=1e-4 * np.abs(coordinates).max())
    variance = ((drawn * units) @ components.numpy().T) ** 2
    np.testing.assert_allclose(variance.mean(0), 1, rtol=1e-6)
    assert share == pytest.approx((values[:wanted] ** 2).sum() / (values**2).sum(), rel=1e-3)


def test_few_completions_of_many_entries_have_the_same_components() -> None:
    """More entries than completions, against numpy's singular value decomposition."""
    scores = torch.randn(30, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide, share = leading_components(scores, 5)
    scaled = scores / scores.square().mean(0).sqrt()
    clipped = scaled * (scaled.norm(dim=1).median() / scaled.norm(dim=1)).clamp(max=1).unsqueeze(1)
    _, values, vectors = np.linalg.svd(clipped.numpy())
    coordinates = wide.numpy() * scores.square().mean(0).sqrt().numpy()
    projector = vectors[:5].T @ vectors[:5]
    np.testing.assert_allclose(coordinates @ projector, coordinates, atol=1e-9 * np.abs(coordinates).max())
    assert share == pytest.approx((values[:5] ** 2).sum() / (values**2).sum())


def test_garbled_completions_do_not_make_theleading_components() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(200, 1, generator=generator) @ torch.ones(1, 10)
    scores = (common + 0.3 * torch.randn(200, 10, generator=generator)).double()
    scores[:3, 0] += torch.tensor([400.0, -400.0, 300.0])
    component, _ = leading_components(scores, 1)
    direction = component[0] * scores.square().mean(dim=0).sqrt()
    assert torch.nn.functional.cosine_similarity(direction[1:], torch.ones(9).double(), dim=0).abs() > 0.95
    assert direction[0].abs() < 0.5 * direction[1:].abs().min()


def test_every_group_has_components_of_its_own_and_too_many_are_refused(tiny_model_folder: Path) -> None:
    bank = adapted(tiny_model_folder, u=2, groups=3).tinylora
    scores = torch.randn(50, len(bank.layers), 4, generator=torch.Generator().manual_seed(1))
    projections, share = principal_projections(scores, bank)
    assert projections.shape == (len(bank.layers), 2, 2, 2) and 0 < share < 1
    for group in range(3):
        members = [i for i, layer in enumerate(bank.layers) if layer.group == group]
        expected, _ = leading_components(scores[:, members].flatten(1).double(), 2)
        found = projections[members].transpose(0, 1).reshape(2, -1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(AdapterError, match="at most 1 scalars"):
        principal_projections(scores[:1], bank)


def test_a_checkpoint_keeps_them(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model_folder, u=4)
    bank = model.tinylora
    bank.set_projections(torch.randn(len(bank.layers), 4, 2, 2, generator=torch.Generator().manual_seed(2)))
    torch.nn.init.normal_(bank.v)
    path = save_checkpoint(tmp_path, model, "tiny")
    other = adapted(tiny_model_folder, u=4, seed=3)  # of a run with another seed, which draws nothing here
    load_checkpoint(path, other)
    assert torch.equal(other.tinylora.projections, bank.projections)
    assert all(map(torch.equal, other.tinylora.mixings(), bank.mixings()))
    torch.testing.assert_close(other.tinylora.layers[3].delta_weight(), bank.layers[3].delta_weight())
