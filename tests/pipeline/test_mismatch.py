"""Engine and trainer that are two policies: a run ends before it trains, and the benchmark of mismatch says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import TinyLoRAConfig, inject
from pipeline.collapse import MISMATCH_LIMIT, check_mismatch
from pipeline.config import RunConfig, resolved
from pipeline.rollout.engine import EngineError
from rewards.problem import Problem

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

    from pipeline.grading import StreamingGrader
    from pipeline.policy import Policy
    from pipeline.rollout.transformers_engine import TransformersEngine
    from pipeline.run_folder import RunFolder
    from pipeline.tasks import task_of
    from pipeline.trainer import TinyLoRATrainer

    def make(steps: int, noise: float) -> Any:
        """A trainer in the same folder each time, whose engine's weights are `noise` of their size from its own."""
        models = [AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32) for _ in range(2)]
        weight = models[1].model.layers[0].mlp.down_proj.weight.data
        weight += noise * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        for model in models:
            inject(model, TinyLoRAConfig(u=8))
        settings = RunConfig(task="gsm8k", dataset="x", prompts_per_step=2, num_generations=4, steps=steps)
        config = resolved(replace(settings, max_completion_length=12), starter=True, gpu=False)
        engine = TransformersEngine(models[1], eos_token_ids=[2], pad_token_id=0)
        policy = Policy(models[0], AutoTokenizer.from_pretrained(tiny_model_folder), engine)
        folder = RunFolder(tmp_path / "run") if (tmp_path / "run").is_dir() else RunFolder.create(
            str(tmp_path / "run"), "test"
        )
        records: list[dict[str, Any]] = []
        grader = StreamingGrader(None, task_of(config))
        trainer = TinyLoRATrainer(policy, grader, PROBLEMS, config, folder, records.append)
        trainer.reward_funcs[0] = lambda prompts, completions, **_: [
            float(sum(map(ord, c[0]["content"])) % 7) for c in completions
        ]
        return trainer, folder, records

    return make


@pytest.mark.integration
def test_an_engine_of_other_weights_ends_the_run_before_it_trains(trainer_of: Callable[..., Any]) -> None:
    trainer, folder, records = trainer_of(steps=2, noise=0.3)
    with pytest.raises(EngineError, match="two policies"):
        trainer.train()
    assert not records and not trainer.bank.v.any()
    assert folder.whole_checkpoint() == (0, None)


@pytest.mark.integration
def test_a_resumed_run_looks_again(trainer_of: Callable[..., Any]) -> None:
    trainer, folder, records = trainer_of(steps=1, noise=0.0)
    trainer.train()
    assert records[0]["mismatch"] < 1e-9
    done, checkpoint = folder.whole_checkpoint()
    assert done == 1
    trainer, _, records = trainer_of(steps=3, noise=0.3)
    with pytest.raises(EngineError, match="two policies"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not records and folder.whole_checkpoint()[0] == 1
