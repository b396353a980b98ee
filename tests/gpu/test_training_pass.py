"""On the GPU the merged pass gives the gradient of the exact one, on the weights that the merge gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters import TinyLoRAConfig, inject
from adapters.base import dense
from adapters.merge import delta_weight, merge_weight, salt_of
from pipeline.rollout.swiglu import keep_swiglu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=[(quant, dtype) for quant in ("nf4", "none") for dtype in DTYPES], ids=str)
def model(request, tiny_model_folder: Path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quant, dtype = request.param
    options = {}
    if quant == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=dtype, device_map="cuda", **options)
    torch.nn.init.normal_(inject(model, TinyLoRAConfig(u=8, groups=3)).v, std=0.1)
    return model


def gradient(model) -> torch.Tensor:
    model.tinylora.v.grad = None
    ids = torch.arange(5, 205, device="cuda").view(4, 50)
    model(input_ids=ids, labels=ids).loss.backward()
    return model.tinylora.v.grad.clone()


def test_gradient_of_the_merged_pass_is_that_of_the_exact_one(model) -> None:
    exact = gradient(model)
    model.tinylora.merge_with("stochastic")
    merged = gradient(model)
    keep_swiglu(model)
    with_gate = gradient(model)
    assert not torch.equal(with_gate, merged)  # it is used
    for one in (merged, with_gate):
        assert torch.cosine_similarity(exact.flatten(), one.flatten(), dim=0) > 0.98
        assert float(one.norm() / exact.norm()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_layers_compute_with_the_bits_of_the_reference(model, rounding) -> None:
    bank = model.tinylora
    bank.merge_with(rounding)
    for name, layer, base, mixing in zip(bank.names, bank.layers, bank.bases(), bank.mixings(), strict=True):
        delta = delta_weight(layer.left, mixing, layer.right)
        expected = merge_weight(dense(base), delta, rounding, salt_of(name))
        assert torch.equal(layer.merged_weight().view(torch.int16), expected.view(torch.int16))


def test_outputs_into_the_residual_stream_are_not_rounded(model) -> None:
    """With the gradients of the rounded pass, each in the dtype of what it belongs to."""
    model.tinylora.merge_with("nearest")
    layer = model.model.layers[0].mlp.down_proj
    torch.manual_seed(0)
    x = torch.randn(3, 11, layer.in_features, device="cuda").to(layer.dtype).requires_grad_()
    target = torch.randn(3, 11, layer.out_features, device="cuda")

    def computed(wide: bool) -> tuple[torch.Tensor, ...]:
        layer.wide_output = wide
        y = layer(x)
        return y, *torch.autograd.grad(y, (x, model.tinylora.v), target.to(y.dtype))

    found, rounded = computed(True), computed(False)
    exact = x.double() @ layer.merged_weight().double().mT
    assert found[0].dtype == torch.float32 and float((found[0] - exact).norm() / exact.norm()) < 1e-5
    assert rounded[0].dtype == found[1].dtype == layer.dtype
    for one, other in zip(found[1:], rounded[1:], strict=True):
        assert torch.equal(one, other)


def test_recomputed_activations_give_the_same_gradient() -> None:
    """Also from a residual stream that Unsloth keeps in the host's memory, which it does with more than 2 MB a layer
    and rows of at least 512 tokens. It would round it to bf16 there."""
    from pipeline.config import Settings, resolved
    from pipeline.environment import prepare_environment
    from pipeline.policy.models import choose_model, load_model, made_ready
    from pipeline.rollout.residual import keep_residual
    from pipeline.training.logprobs import completion_log_probs
    from pipeline.training.packing import packed

    prepare_environment()
    config = resolved(
        Settings(dataset="starter", max_prompt_length=208, max_completion_length=512), starter=True, gpu=True
    )
    model, _ = load_model(made_ready(choose_model("starter")), config)
    bank = model.tinylora
    bank.v.data = 0.03 * torch.randn(bank.v.shape, generator=torch.Generator().manual_seed(0)).cuda()
    bank.merge_with("stochastic")
    keep_residual(model)
    keep_swiglu(model)
    model.enable_input_require_grads()
    model.train()
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(5, 300, (48, 2, 110), generator=generator).tolist()
    pack = packed([prompt for prompt, _ in rows], [completion for _, completion in rows], "cuda")

    def found() -> tuple[torch.Tensor, torch.Tensor]:
        bank.v.grad = None
        log_probs, _ = completion_log_probs(model, pack, 110, 1.0)
        log_probs.square().sum().backward()
        return log_probs.detach(), bank.v.grad.clone()

    kept = found()
    model.gradient_checkpointing_enable()
    for _ in range(2):  # Unsloth's first pass is different
        recomputed = found()
        assert torch.equal(recomputed[0], kept[0])
        torch.testing.assert_close(recomputed[1], kept[1], rtol=1e-5, atol=1e-5 * float(kept[1].abs().max()))


@pytest.mark.parametrize("rows, width, n", [(1, 64, 2), (100, 896, 6), (513, 11008, 2), (64, 1000, 3), (40, 2048, 24)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_skinny_product(dtype: torch.dtype, rows: int, width: int, n: int) -> None:
    from adapters.kernels.skinny import skinny_product

    x, a = torch.randn(rows, width, device="cuda").to(dtype), torch.randn(n, width, device="cuda").to(dtype)
    torch.testing.assert_close(skinny_product(x, a), x.float() @ a.float().mT, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("rows, width, n, m", [(1, 64, 2, 2), (100, 896, 2, 2), (513, 11008, 2, 2), (64, 1000, 8, 8)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_skinny_outer(dtype: torch.dtype, rows: int, width: int, n: int, m: int) -> None:
    from adapters.kernels.skinny import skinny_outer

    x, a = torch.randn(rows, width, device="cuda").to(dtype), torch.randn(n, width, device="cuda").to(dtype)
    b = torch.randn(rows, 3 * m, device="cuda")[:, m : 2 * m]
    product = skinny_outer(x, a, b)
    expected = (x.double() @ a.double().mT).mT @ b.double()
    torch.testing.assert_close(product.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert torch.equal(product, skinny_outer(x, a, b))


@pytest.mark.parametrize("sizes", [[512], [2048, 256, 256], [300, 40, 40], [1000, 1000]], ids=str)
def test_update_beside_the_weights(sizes: list[int]) -> None:
    """The kernels of the engine give what the torch path gives."""
    from pipeline.rollout.vllm.lowrank import add_lowrank

    y, x = torch.randn(100, sum(sizes), device="cuda").bfloat16(), torch.randn(100, 320, device="cuda").bfloat16()
    right, left = torch.randn(2 * len(sizes), 320, device="cuda").bfloat16(), torch.randn(2, sum(sizes), device="cuda")
    mixing, left = torch.randn(len(sizes), 2, 2, device="cuda"), left.bfloat16()
    expected = add_lowrank(y.double(), x.double(), right.double(), mixing, left.double(), sizes)
    torch.testing.assert_close(add_lowrank(y, x, right, mixing, left, sizes).double(), expected, rtol=5e-3, atol=5e-2)
