"""A 4-bit policy loaded by Unsloth on this machine's own device: what trains, in which precision, and on which base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import RunConfig, Settings, resolved
from pipeline.policy.models import ModelChoice
from rewards.problem import Problem, Test
from tests.tiny_model import save_tiny_model

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def config() -> RunConfig:
    settings = Settings(dataset="unused", quant="nf4", steps=2, prompts_per_step=2, num_generations=4)
    return resolved(settings, starter=True, gpu=False)


@pytest.fixture(scope="module")
def loaded(tiny_model_folder: Path, config: RunConfig):
    from pipeline.policy.models import load_model

    return load_model(ModelChoice("tiny", str(tiny_model_folder), "a test"), config)


def test_gradients_reach_v_and_nothing_else(loaded) -> None:
    from bitsandbytes.nn import Linear4bit

    model, _ = loaded
    assert isinstance(model.model.layers[0].self_attn.q_proj.base_layer, Linear4bit)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["tinylora.v"]
    model(input_ids=torch.arange(5, 40).unsqueeze(0)).logits.float().square().mean().backward()
    assert model.tinylora.v.grad.abs().sum() > 0
    assert all(p.grad is None for name, p in model.named_parameters() if name != "tinylora.v")
    model.tinylora.v.grad = None


def test_v_and_optimizer_state_are_float32_once_the_trainer_is_built(loaded, config: RunConfig, tmp_path: Path) -> None:
    from pipeline.policy.loading import Policy
    from pipeline.policy.models import eos_token_ids
    from pipeline.rollout.streaming import StreamingGrader
    from pipeline.rollout.transformers_engine import TransformersEngine
    from pipeline.run_folder import RunFolder
    from pipeline.training.trainer import TinyLoRATrainer
    from rewards.grader.pool import GraderPool

    model, tokenizer = loaded
    engine = TransformersEngine(
        model, eos_token_ids=eos_token_ids(model, tokenizer), pad_token_id=tokenizer.pad_token_id
    )
    problems = [Problem(str(i), f"Print {i}.", (Test("", str(i)),)) for i in range(4)]
    with GraderPool(workers=1, quiet=True) as pool:
        folder = RunFolder.create(str(tmp_path / "run"), "nf4")
        trainer = TinyLoRATrainer(
            Policy(model, tokenizer, engine), StreamingGrader(pool), problems, config, folder, lambda record: None
        )
        assert model.tinylora.v.dtype == torch.float32
        optimizer = trainer.create_optimizer()
        model.tinylora.v.grad = torch.ones_like(model.tinylora.v)
        optimizer.step()
    assert [p.data_ptr() for group in optimizer.param_groups for p in group["params"]] == [model.tinylora.v.data_ptr()]
    state = optimizer.state[model.tinylora.v]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32
    with torch.no_grad():
        model.tinylora.v.zero_()


@pytest.mark.parametrize("rounding", ["stochastic", None], ids=["merged", "beside"])
def test_engine_serves_the_dequantised_base_of_the_trainer(
    loaded, rounding, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Greedy tokens are those of the 4-bit model, merged or beside, with weights of the engine's own and without; and
    nothing but the settings is read from the folder: that of another checkpoint serves as well."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from pipeline.policy.models import compute_dtype
    from pipeline.rollout import Sampling
    from pipeline.rollout.transformers_engine import TransformersEngine
    from pipeline.rollout.vllm.engine import VLLMEngine

    model, _ = loaded
    options: dict[str, Any] = {"dtype": compute_dtype(), "max_model_len": 128, "eos_token_ids": []}
    other = save_tiny_model(tmp_path / "other", seed=1)
    v = torch.randn(model.tinylora.v.shape, generator=torch.Generator().manual_seed(0)) * 0.2
    prompts, sampling = [list(range(5, 40)), [9, 8, 7]], Sampling(12, temperature=0)
    served, digests = [], []
    for packed in (False, True):
        engine = VLLMEngine(str(other), model, rounding=rounding, packed=packed, **options)
        engine.refresh(v)
        served.append(engine.generate(prompts, sampling, lambda row, completion: None))
        digests.append(engine.digest())
        theirs = engine.worker.get_model()
        assert theirs.model.embed_tokens.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        held = sum(p.numel() for name, p in theirs.named_parameters() if "proj.weight" in name)
        assert held == (0 if packed else sum(layer.in_features * layer.out_features for layer in model.tinylora.layers))
        engine.close()
    own = TransformersEngine(model, eos_token_ids=[], pad_token_id=0)
    own.refresh(v)
    expected = own.generate(prompts, sampling, lambda row, completion: None)
    assert digests[0] == digests[1]
    for completions in served:
        for theirs, ours in zip(completions, expected, strict=True):
            assert theirs.token_ids == ours.token_ids
            assert theirs.log_probs == pytest.approx(ours.log_probs, abs=1e-3)
