"""Principal projections of a policy that samples: v is in units of the KL that it causes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters import TinyLoRAConfig, inject
from pipeline.config import Settings, resolved
from rewards.problem import Problem

pytestmark = pytest.mark.integration
PROBLEMS = [Problem(str(i), f"What is {i}?", answer=str(i)) for i in range(5)]


def test_a_step_has_the_kl_of_half_its_square(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the sum over tokens of KL(base ‖ policy), exact over the vocabulary, on completions of the base."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.evaluation.evaluate import prompt_ids
    from pipeline.policy.loading import Policy
    from pipeline.rollout import Sampling
    from pipeline.rollout.transformers_engine import TransformersEngine
    from pipeline.tasks import TASKS
    from pipeline.training.calibration import COMPLETIONS, calibrate

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    bank = inject(model, TinyLoRAConfig(u=6, projections="principal"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    engine = TransformersEngine(model, eos_token_ids=[2], pad_token_id=0)
    task = TASKS["gsm8k"]
    config = resolved(Settings(task="gsm8k", dataset="x", max_completion_length=12), starter=True, gpu=False)
    report = calibrate(Policy(model, tokenizer, engine), PROBLEMS, task, config)
    watched = capsys.readouterr().err
    assert all(f"{report['completions']}/{report['completions']} {doing}" in watched for doing in ("drawn", "scored"))
    assert report["completions"] >= COMPLETIONS and 0 < report["variance_share"] <= 1
    prompts = [ids for ids in prompt_ids(tokenizer, PROBLEMS, task) for _ in range(8)]
    completions = engine.generate(prompts, Sampling(12, seed=5), lambda *_: None)

    def distributions() -> list[torch.Tensor]:
        rows = [torch.tensor([p + c.token_ids]) for p, c in zip(prompts, completions, strict=True)]
        return [
            model(input_ids=ids).logits[0, len(p) - 1 : -1].double().log_softmax(-1)
            for ids, p in zip(rows, prompts, strict=True)
        ]

    with torch.no_grad():
        base = distributions()
        for direction in torch.eye(6)[[0, 3]]:
            bank.v.copy_(0.2 * direction)
            moved = distributions()
            kl = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(base, moved, strict=True)) / len(base)
            assert kl == pytest.approx(0.02, rel=0.6)
