"""The adapted model: what is trainable, what the layers compute, and the agreement with PEFT's tuner."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapters import AdapterError, TinyLoRAConfig, TinyLoRALinear, adapted_layers, inject


@pytest.fixture
def model(tiny_model_folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)


def test_only_v_is_trainable_and_starts_as_the_base(model) -> None:
    ids = torch.arange(5, 25).unsqueeze(0)
    before = model(ids).logits
    bank = inject(model, TinyLoRAConfig(u=32))
    assert [(name, p.shape) for name, p in model.named_parameters() if p.requires_grad] == [("tinylora.v", (1, 32))]
    assert bank.v.dtype == torch.float32 and len(adapted_layers(model)) == 14
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)


def test_layer_adds_its_delta_and_can_be_switched_off(model) -> None:
    bank = inject(model, TinyLoRAConfig(u=4, rank=3))
    nn.init.normal_(bank.v, std=0.5)
    layer = model.model.layers[1].mlp.down_proj
    assert isinstance(layer, TinyLoRALinear) and isinstance(layer.base_layer, nn.Linear)
    x = torch.randn(2, 5, layer.in_features)
    torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + layer.delta_weight()).T, rtol=1e-4, atol=1e-4)
    with bank.disabled():
        assert torch.equal(layer(x), layer.base_layer(x))
    assert bank.enabled


def test_gradient_reaches_v_from_every_layer(model) -> None:
    bank = inject(model, TinyLoRAConfig(u=3, groups=14))
    model(torch.arange(5, 25).unsqueeze(0)).logits.square().mean().backward()
    assert bank.v.grad is not None and (bank.v.grad.abs().sum(dim=1) > 0).all()


def test_bf16_model_keeps_v_in_float32(tiny_model_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16)
    bank = inject(model, TinyLoRAConfig())
    output = model(torch.arange(5, 25).unsqueeze(0)).logits
    output.float().square().mean().backward()
    assert output.dtype == torch.bfloat16 and bank.v.grad is not None and bank.v.grad.dtype == torch.float32


@given(modules=st.integers(1, 300), groups=st.integers(1, 300))
def test_groups_are_contiguous_and_near_equal(modules: int, groups: int) -> None:
    groups = min(groups, modules)
    config = TinyLoRAConfig(groups=groups)
    members = [config.group_of(i, modules) for i in range(modules)]
    assert members == sorted(members) and set(members) == set(range(groups))
    assert max(Counter(members).values()) - min(Counter(members).values()) <= 1


def test_order_of_depth_is_layer_by_layer(model) -> None:
    bank = inject(model, TinyLoRAConfig())
    assert [name.rpartition(".")[2][0] for name in bank.names] == list("qkvogud") * 2
    assert bank.names[0].startswith("model.layers.0.") and bank.names[-1].startswith("model.layers.1.")


@pytest.mark.parametrize("wrong", [{"u": 0}, {"rank": -1}, {"groups": 0}, {"u": 1.5}, {"targets": ()}])
def test_impossible_configs_are_refused(wrong: dict) -> None:
    with pytest.raises(AdapterError):
        TinyLoRAConfig(**wrong)


def test_impossible_injections_are_refused(model) -> None:
    with pytest.raises(AdapterError, match="use at most 14"):
        inject(model, TinyLoRAConfig(groups=15))
    with pytest.raises(AdapterError, match="no module named"):
        inject(model, TinyLoRAConfig(targets=("nothing",)))
    inject(model, TinyLoRAConfig())
    with pytest.raises(AdapterError, match="already"):
        inject(model, TinyLoRAConfig())


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_delta_equals_pefts_after_the_change_of_basis(rank: int) -> None:
    """PEFT splits Σ as √Σ on both sides: U √Σ R' √Σ Vᵀ is our ΔW for R' = Σ^½ R Σ^-½."""
    peft = pytest.importorskip("peft")

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q_proj = nn.Linear(24, 16, bias=False)

    config = peft.TinyLoraConfig(r=rank, u=5, weight_tying=1.0, target_modules=["q_proj"])
    theirs = peft.get_peft_model(Toy(), config).base_model.model.q_proj
    ours = Toy()
    nn.init.normal_(inject(ours, TinyLoRAConfig(u=5, rank=rank, targets=("q_proj",))).v)
    layer = ours.q_proj
    assert isinstance(layer, TinyLoRALinear)
    root = layer.left.norm(dim=0).sqrt()  # Σ^½
    signs = ((theirs.tinylora_B["default"] * layer.left).sum(dim=0)).sign()  # PEFT leaves them as the solver gives them
    with torch.no_grad():
        theirs.tinylora_P["default"] = (signs * root).view(-1, 1) * layer.projections * (signs / root).view(1, -1)
        theirs.tinylora_v["default"][theirs._tinylora_v_key["default"]].copy_(ours.tinylora.v[0])
    torch.testing.assert_close(theirs.get_delta_weight("default"), layer.delta_weight(), rtol=0, atol=1e-5)
