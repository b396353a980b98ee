"""Checkpoints of the predecessors: the numbers of CUDA's generator, the three rules, and files that cannot be read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from adapters import AdapterError, TinyLoRAConfig, adapted_layers, inject
from adapters.legacy import apply_seed_checkpoint, cuda_randn, projection_of, read_seed_checkpoint

# (seed, call, first rows of P) as a GPU drew them for u = 32, r = 2, divided by √2, in bf16
GOLDEN = [
    (20260306, 0, [[-0.46484375, 0.0576171875], [-0.043212890625, -0.10205078125]]),
    (20260306, 1, [[0.021728515625, 0.2578125]]),
    (20260306, 251, [[0.5234375, 0.380859375]]),
    (212, 0, [[-0.44140625, -0.2490234375], [-0.11669921875, 1.4609375]]),
    (212, 1, [[-0.77734375, -0.5078125]]),
    (212, 251, [[-0.82421875, 0.298828125]]),
    (42, 0, [[0.1376953125, 1.5234375], [-0.12158203125, 0.59765625]]),
    (42, 1, [[0.09814453125, -0.07666015625]]),
    (42, 251, [[0.2158203125, -0.51953125]]),
]


@pytest.mark.parametrize(
    "seed, values", [(0, [-0.9247, -0.4253, -2.6438, 0.1452]), (42, [0.1940, 2.1614, -0.1721, 0.8491])]
)
def test_the_generator_is_cudas(seed: int, values: list[float]) -> None:
    assert cuda_randn(seed, 0, 4).tolist() == pytest.approx(values, abs=6e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [0, 42, 212, 20260306])
def test_a_gpu_draws_the_same_numbers(seed: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    torch.manual_seed(seed)
    for call in range(252):
        shape = (32, 2) if call % 2 else (32, 2, 2)
        drawn = torch.randn(shape, device="cuda", dtype=torch.bfloat16).cpu().flatten()
        assert torch.equal(drawn, cuda_randn(seed, call, drawn.numel()).bfloat16())


@pytest.mark.parametrize("seed, call, rows", GOLDEN)
def test_projections_equal_the_golden_ones(seed: int, call: int, rows: list[list[float]]) -> None:
    projections = projection_of(TinyLoRAConfig(seed=seed, projections="cuda-diag-scaled"), call, "ignored")
    assert projections.diagonal(dim1=1, dim2=2)[: len(rows)].tolist() == rows
    assert projections.shape == (32, 2, 2) and (projections[:, 0, 1] == 0).all() and (projections[:, 1, 0] == 0).all()


def test_the_rules_differ_only_in_scale_and_layout() -> None:
    drawn = cuda_randn(42, 3, 128).bfloat16().float()
    diag = projection_of(TinyLoRAConfig(seed=42, projections="cuda-diag"), 3, "")
    full = projection_of(TinyLoRAConfig(seed=42, projections="cuda-full"), 3, "")
    assert torch.equal(diag.diagonal(dim1=1, dim2=2).flatten(), drawn[:64])
    assert torch.equal(full.flatten(), drawn)
    with pytest.raises(AdapterError, match="projections must be one of normal"):
        TinyLoRAConfig(projections="other")


def stored(**changes) -> dict:
    v = torch.linspace(-1, 1, 32).bfloat16()
    return {
        "global_v": v,
        "u_value": 32,
        "rank": 2,
        "seed": 20260306,
        "model_id": "qwen/Qwen2.5-Coder-3B-Instruct",
        "total_replaced_layers": 14,
    } | changes


def test_a_file_becomes_an_adapter_with_its_rule(tmp_path: Path, tiny_model_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = tmp_path / "tiny_lora_v.pt"
    torch.save(stored(), path)
    checkpoint = read_seed_checkpoint(path)
    config = checkpoint.config()
    assert config == TinyLoRAConfig(seed=20260306, projections="cuda-diag-scaled")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    inject(model, config)
    apply_seed_checkpoint(checkpoint, model, path)
    layers = list(adapted_layers(model).values())
    scale = checkpoint.v @ projection_of(config, 5, "").diagonal(dim1=1, dim2=2)
    expected = (layers[5].left * scale) @ layers[5].right
    torch.testing.assert_close(layers[5].delta_weight(), expected, rtol=1e-5, atol=1e-6)

    torch.save(stored(total_replaced_layers=252), path)
    with pytest.raises(AdapterError, match="252 modules, but the model has 14"):
        apply_seed_checkpoint(read_seed_checkpoint(path), model, path)


def test_full_projections_take_the_signs_of_lapack(tiny_model_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    inject(model, TinyLoRAConfig(seed=42, projections="cuda-full"))
    with torch.no_grad():
        model.tinylora.v.copy_(torch.linspace(-1, 1, 32))
    for layer in adapted_layers(model).values():
        u, s, vh = torch.linalg.svd(layer.base_layer.weight, full_matrices=False)  # as the predecessors computed
        expected = u[:, :2] @ torch.diag(s[:2]) @ layer.mixing() @ vh[:2]
        torch.testing.assert_close(layer.delta_weight(), expected, rtol=1e-3, atol=1e-4)


def test_an_ambiguous_file_asks_for_the_variant(tmp_path: Path) -> None:
    path = tmp_path / "tiny_lora_v.pt"
    torch.save(stored(seed=42), path)
    checkpoint = read_seed_checkpoint(path)
    with pytest.raises(AdapterError, match="add --variant with one of full, diag, diag-scaled"):
        checkpoint.config()
    assert checkpoint.config("full").projections == "cuda-full"
    with pytest.raises(AdapterError, match="--variant must be one of"):
        checkpoint.config("other")
    torch.save(stored(seed=42, is_quantized=True), path)
    assert read_seed_checkpoint(path).config().projections == "cuda-diag-scaled"


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_broken_and_foreign_files_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "tiny_lora_v.pt"
    with pytest.raises(AdapterError, match="no such file"):
        read_seed_checkpoint(path)
    torch.save(stored(), path)
    data = path.read_bytes()
    for size in (0, 5, 200, len(data) // 2, len(data) - 20):
        path.write_bytes(data[:size])
        with pytest.raises(AdapterError, match="damaged"):
            read_seed_checkpoint(path)
    noise = random.Random(0)
    for junk in (b"not a checkpoint at all", *(noise.randbytes(300) for _ in range(50))):
        path.write_bytes(junk)
        with pytest.raises(AdapterError, match="damaged"):
            read_seed_checkpoint(path)
    torch.save({"global_v": Payload()}, path)
    with pytest.raises(AdapterError, match="more than tensors") as error:
        read_seed_checkpoint(path)
    assert "must never" not in capsys.readouterr().out and "\n" not in str(error.value)
    for content, match in (
        (torch.zeros(32), "bare tensor"),
        ({"state_dict": torch.zeros(3)}, "no tensor global_v"),
        ([1, 2], "no tensor global_v"),
        (stored(u_value=16), "has 32 numbers, but u_value is 16"),
        (stored(rank="2"), "rank must be a whole number"),
        (stored(global_v=torch.full((32,), torch.nan)), "not finite"),
    ):
        torch.save(content, path)
        with pytest.raises(AdapterError, match=match):
            read_seed_checkpoint(path)
