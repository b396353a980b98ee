"""The adapted model: what is trainable, what the layers compute, and the agreement with PEFT's tuner."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapters import AdapterError, TinyLoRAConfig, TinyLoRALinear, adapted_layers, inject
from adapters.merge import merge_weight, salt_of
from adapters.tinylora import gated


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


def loss_and_gradient(model, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model.tinylora.v.grad = None
    loss = model(ids).logits.float().square().mean()
    loss.backward()
    return loss.detach(), model.tinylora.v.grad.clone()


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["kept", "reentrant", "not reentrant"])
@pytest.mark.parametrize("rank", [1, 3])
def test_merged_weights_give_the_loss_and_gradient_of_the_side_path(model, rank: int, checkpointing) -> None:
    torch.manual_seed(0)  # what ran before must not choose v: for some the loss hardly changes
    bank = inject(model, TinyLoRAConfig(u=5, rank=rank, groups=3))
    nn.init.normal_(bank.v, std=0.2)
    ids = torch.arange(5, 45).view(2, 20)
    loss, gradient = loss_and_gradient(model, ids)
    bank.merge_with("stochastic")
    if checkpointing is not None:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    for _ in range(2):  # the second time with everything cached
        merged_loss, merged_gradient = loss_and_gradient(model, ids)
        torch.testing.assert_close(merged_loss, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(merged_gradient, gradient, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        bank.v.mul_(1.5)
    changed = loss_and_gradient(model, ids)[0]
    bank.merge_with(None)
    torch.testing.assert_close(loss_and_gradient(model, ids)[0], changed, rtol=1e-5, atol=0)
    assert not torch.allclose(changed, loss, rtol=1e-4)


@pytest.mark.parametrize("rounding", [None, "stochastic"])
@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_of_single_rows(model, rounding, groups: int) -> None:
    """A copy of v for every row gives the loss of one v, and each row's own gradient."""
    bank = inject(model, TinyLoRAConfig(u=5, rank=3, groups=groups))
    nn.init.normal_(bank.v, std=0.2)
    bank.merge_with(rounding)
    ids = torch.arange(5, 65).view(3, 20)
    loss, gradient = loss_and_gradient(model, ids)
    bank.v.grad = None
    with bank.per_row(torch.arange(3).repeat_interleave(20), 3) as rows:
        row_losses = model(ids).logits.float().square().mean(dim=(1, 2))
        row_losses.mean().backward()
    torch.testing.assert_close(row_losses.mean().detach(), loss)
    torch.testing.assert_close(bank.v.grad, gradient, rtol=1e-4, atol=1e-7)
    assert bank.rows is None and rows.grad is not None and rows.grad.shape == (3, groups, 5)
    for row in range(3):
        alone = loss_and_gradient(model, ids[row : row + 1])[1]
        torch.testing.assert_close(3 * rows.grad[row], alone, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("copies", [False, True])
def test_gate_and_up_in_one_node_give_what_the_layers_give(model, groups: int, copies: bool) -> None:
    """Value and all gradients in float64, also of copies of v; nothing where weights are not merged."""
    bank = inject(model.double(), TinyLoRAConfig(u=4, groups=groups))
    nn.init.normal_(bank.v, std=0.3)
    block = model.model.layers[1].mlp
    gate, up = block.gate_proj, block.up_proj
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(2, 9, gate.in_features, dtype=torch.float64, generator=generator).requires_grad_()
    target = torch.randn(2, 9, gate.out_features, dtype=torch.float64, generator=generator)
    assert gated(gate, up, leaf) is None
    bank.merge_with("nearest")

    def found(one_node: bool) -> list[torch.Tensor]:
        with bank.per_row(torch.arange(18) // 6, 3) if copies else nullcontext():
            y = gated(gate, up, leaf) if one_node else nn.functional.silu(gate(leaf)) * up(leaf)
            assert y is not None
            return [y.detach(), *torch.autograd.grad((y * target).sum(), (leaf, bank.vector))]

    for one, other in zip(found(True), found(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert gated(gate, up, leaf) is not None
    with bank.disabled():
        assert gated(gate, up, leaf) is None


def test_merged_weights_are_those_of_the_engine(tiny_model_folder: Path) -> None:
    """bf16, where rounding matters: a layer computes with round(W + ΔW), and hands its gradient on to x."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16)
    bank = inject(model, TinyLoRAConfig(u=4))
    nn.init.normal_(bank.v, std=0.1)
    bank.merge_with("stochastic")
    layer = model.model.layers[0].self_attn.k_proj
    expected = merge_weight(layer.base_layer.weight, layer.delta_weight(), "stochastic", salt_of(bank.names[1]))
    assert torch.equal(layer.merged_weight(), expected)
    x = torch.randn(3, 5, layer.in_features).bfloat16().requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, nn.functional.linear(x, expected, layer.base_layer.bias))
    y.sum().backward()
    torch.testing.assert_close(x.grad, (torch.ones_like(y) @ expected), rtol=2e-2, atol=1e-2)


def test_layers_of_one_input_share_its_product_and_no_other(model) -> None:
    bank = inject(model, TinyLoRAConfig(u=4))
    nn.init.normal_(bank.v, std=0.1)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.shared is attention.v_proj.shared is not attention.o_proj.shared
    first, second = torch.randn(2, 6, attention.q_proj.in_features), torch.randn(2, 6, attention.q_proj.in_features)
    for x in (first, second):
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            expected = (x @ layer.right.mT).view(12, -1)
            torch.testing.assert_close(layer.shared.hidden(layer, x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(  # out of order, on a tensor that no other layer saw
        attention.k_proj.shared.hidden(attention.k_proj, first + 1),
        ((first + 1) @ attention.k_proj.right.mT).view(12, -1),
        rtol=1e-5,
        atol=1e-5,
    )


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
