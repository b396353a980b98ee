"""Engine and trainer that are two policies: a run ends before it trains, and the benchmark of mismatch says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import TinyLoRAConfig, inject, merge, tinylora
from pipeline.bench.form import Row
from pipeline.bench.mismatch import SCALES, exact_rows
from pipeline.config import Settings, resolved
from pipeline.policy.models import STARTER_FOLDER
from pipeline.rollout.engine import EngineError
from pipeline.training.collapse import MISMATCH_LIMIT, check_mismatch
from rewards.problem import Problem
from tests.pipeline.training.tiny_trainer import by_text, rewarding

CONFIG = resolved(Settings(dataset="x"), starter=True, gpu=False)
PROBLEMS = [Problem("a", "One?", answer="1"), Problem("b", "Two?", answer="2")]


@pytest.mark.parametrize("mismatch", [1.01 * MISMATCH_LIMIT, float("nan"), float("inf")])
def test_two_policies_are_one_sentence(mismatch: float) -> None:
    with pytest.raises(EngineError, match="two policies") as error:
        check_mismatch(mismatch, "./qwen")
    for part in (f"{mismatch:.3g} nats a token", "doctor.py", "bench.py mismatch --model ./qwen", "--refresh lowrank"):
        assert part in str(error.value)
    check_mismatch(MISMATCH_LIMIT, "./qwen")


@pytest.fixture
def trainer_of(tiny_model_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.policy.loading import Policy
    from pipeline.rollout.streaming import StreamingGrader
    from pipeline.rollout.transformers_engine import TransformersEngine
    from pipeline.run_folder import RunFolder
    from pipeline.tasks import task_of
    from pipeline.training.trainer import TinyLoRATrainer

    def make(steps: int, noise: float) -> Any:
        """A trainer in the same folder each time, whose engine's weights are `noise` of their size from its own."""
        models = [AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32) for _ in range(2)]
        weight = models[1].model.layers[0].mlp.down_proj.weight.data
        weight += noise * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        for model in models:
            inject(model, TinyLoRAConfig(u=8))
        settings = Settings(task="gsm8k", dataset="x", prompts_per_step=2, num_generations=4, steps=steps)
        config = resolved(replace(settings, max_completion_length=12), starter=True, gpu=False)
        engine = TransformersEngine(models[1], eos_token_ids=[2], pad_token_id=0)
        policy = Policy(models[0], AutoTokenizer.from_pretrained(tiny_model_folder), engine)
        path = tmp_path / "run"
        folder = RunFolder(path) if path.is_dir() else RunFolder.create(str(path), "test")
        records: list[dict[str, Any]] = []
        grader = StreamingGrader(None, rewarding(task_of(config), by_text))
        return TinyLoRATrainer(policy, grader, PROBLEMS, config, folder, records.append), folder, records

    return make


@pytest.mark.integration
def test_an_engine_of_other_weights_ends_the_run_before_it_trains(trainer_of: Callable[..., Any]) -> None:
    trainer, folder, records = trainer_of(steps=2, noise=0.3)
    with pytest.raises(EngineError, match="two policies"):
        trainer.train()
    assert not records and not trainer.bank.v.any()
    assert folder.whole_checkpoint(CONFIG) == (0, None)


@pytest.mark.integration
def test_a_resumed_run_looks_again(trainer_of: Callable[..., Any]) -> None:
    trainer, folder, records = trainer_of(steps=1, noise=0.0)
    trainer.train()
    assert records[0]["mismatch"] < 1e-9
    done, checkpoint = folder.whole_checkpoint(CONFIG)
    assert done == 1
    trainer, _, records = trainer_of(steps=3, noise=0.3)
    with pytest.raises(EngineError, match="two policies"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not records and folder.whole_checkpoint(CONFIG)[0] == 1


@pytest.mark.integration
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_beyond_float16_ends_the_run_before_it_trains(trainer_of: Callable[..., Any], bad: float) -> None:
    trainer, folder, records = trainer_of(steps=2, noise=0.0)
    trainer.run_config = replace(trainer.run_config, dtype="float16")
    trainer.bank.scale_gradients = lambda *_: bad
    with pytest.raises(EngineError, match="step 1 is not finite.*--dtype bfloat16"):
        trainer.train()
    assert not records and not trainer.bank.v.any()
    assert folder.whole_checkpoint(CONFIG) == (0, None)


PROMPT, ANSWER = list(range(20, 60)), list(range(60, 120))


@pytest.fixture(scope="module")
def starter() -> tuple[Any, Any]:
    """The starter as the trainer holds it, and its exact policy."""
    from transformers import AutoModelForCausalLM

    from pipeline.bench.exact import ExactPolicy

    if not STARTER_FOLDER.is_dir():
        pytest.skip("the starter has not been made (scripts/make_starter.py)")
    model = AutoModelForCausalLM.from_pretrained(STARTER_FOLDER, dtype=torch.float32)
    inject(model, TinyLoRAConfig(u=32, groups=2))
    return model, ExactPolicy(str(STARTER_FOLDER), model)


def benchmark_rows(starter: tuple[Any, Any], rounding: Any) -> list[Row]:
    """The benchmark's rows of the trainer's side, for one completion."""
    from pipeline.training.logprobs import log_probs_without_gradient

    model, exact = starter
    direction = torch.randn(model.tinylora.v.shape, generator=torch.Generator().manual_seed(0))
    model.tinylora.merge_with(rounding)
    found, expected = {}, {}
    for scale in (0.0, *SCALES):
        exact.move_to(scale * direction)
        expected[scale] = exact.log_probs([PROMPT], [ANSWER])
        with torch.no_grad():
            model.tinylora.v.copy_(scale * direction)
        found[scale] = log_probs_without_gradient(model, [PROMPT], [ANSWER], len(ANSWER), 1.0, 4096)[0][0]
    return exact_rows("trainer", found, expected, gpu=False, barred=True)


@pytest.mark.parametrize("rounding", ["nearest", None])
def test_the_exact_policy_is_that_of_the_trainer(starter: tuple[Any, Any], rounding: Any) -> None:
    rows = benchmark_rows(starter, rounding)
    assert sum(row.ok is True for row in rows) == 6 and not any(row.ok is False for row in rows), rows


def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: 1.1 * function(*arguments)


def without_layer(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, index, mixings: function(self, index, mixings if index != 3 else torch.zeros_like(mixings))


@pytest.mark.parametrize(
    "rounding, owner, name, fault",
    [
        ("nearest", merge, "delta_weight", scaled),
        ("nearest", tinylora, "mixing", scaled),
        (None, tinylora, "mixing", scaled),
        ("nearest", merge.Merger, "one", without_layer),
    ],
)
def test_a_fault_that_both_sides_share_fails_the_benchmark(
    starter: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    rounding: Any,
    owner: Any,
    name: str,
    fault: Callable[..., Any],
) -> None:
    """An update a tenth too large, and one that leaves a layer out: what trainer and engine would agree on."""
    monkeypatch.setattr(owner, name, fault(getattr(owner, name)))
    starter[0].tinylora._mixings.drop()
    rows = benchmark_rows(starter, rounding)
    starter[0].tinylora._mixings.drop()
    failed = {row.what for row in rows if row.ok is False}
    assert {f"trainer against the exact update, rms(v) = {scale:g}" for scale in SCALES} <= failed, rows
    assert not any("rms(v) = 0," in what or what.endswith("rms(v) = 0") for what in failed)
    if fault is scaled:
        assert "trainer's slope on the exact update, rms(v) = 0.01" in failed
