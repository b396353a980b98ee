"""The training step: cutting a batch changes nothing about its gradient, and rows without an advantage cost nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters import TinyLoRAConfig, inject
from pipeline.config import LOSS_TYPES, Settings, resolved
from pipeline.training.microbatch import packed_part, prompts_and_completions
from rewards.problem import Problem, Test

pytestmark = pytest.mark.integration
ROWS, PROMPT, COMPLETION = 8, 12, 20


@pytest.fixture(scope="module")
def trainer(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.policy.loading import Policy
    from pipeline.rollout.streaming import StreamingGrader
    from pipeline.rollout.transformers_engine import TransformersEngine
    from pipeline.run_folder import RunFolder
    from pipeline.training.trainer import TinyLoRATrainer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    torch.nn.init.normal_(inject(model, TinyLoRAConfig(u=8)).v, std=0.1)
    config = resolved(Settings(prompts_per_step=2, num_generations=4, steps=2), starter=True, gpu=False)
    problems = [Problem(str(i), f"Print {i}.", (Test("", str(i)),)) for i in range(4)]
    folder = RunFolder.create(str(tmp_path_factory.mktemp("run") / "run"), "test")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    engine = TransformersEngine(model, eos_token_ids=[2], pad_token_id=0)
    policy, grader = Policy(model, tokenizer, engine), StreamingGrader(None)  # these tests never generate
    trainer = TinyLoRATrainer(policy, grader, problems, config, folder, lambda record: None)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def batch() -> dict[str, torch.Tensor]:
    """A scored batch as TRL hands it over, with ragged rows and two groups of a prompt each, one of them without any
    advantage."""
    g = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, PROMPT + 1, (2,), generator=g).repeat_interleave(4)
    completions = torch.randint(1, COMPLETION + 1, (ROWS,), generator=g)
    completion_mask = (torch.arange(COMPLETION) < completions.unsqueeze(1)).long()
    old = -torch.rand(ROWS, COMPLETION, generator=g) * 8
    return {
        "prompt_ids": torch.randint(5, 250, (2, PROMPT), generator=g).repeat_interleave(4, dim=0),
        "prompt_mask": (torch.arange(PROMPT) >= PROMPT - prompts.unsqueeze(1)).long(),
        "completion_ids": torch.randint(5, 250, (ROWS, COMPLETION), generator=g),
        "completion_mask": completion_mask,
        "group": torch.arange(ROWS) // 4,
        "advantages": torch.tensor([1.0, -0.5, 0.3, -0.8, 0.0, 0.0, 0.0, 0.0]),
        "num_items_in_batch": completion_mask.sum(),
        "old_per_token_logps": old,
        "sampling_per_token_logps": old,
        "ref_per_token_logps": -torch.rand(ROWS, COMPLETION, generator=g) * 8,
        "importance_sampling_ratio": torch.rand(ROWS, COMPLETION, generator=g) + 0.5,
    }


def gradient(trainer, parts) -> torch.Tensor:
    trainer.bank.v.grad = None
    for part, weight in parts:
        (sum(trainer.losses_of(part, packed_part(part))[0]) * weight).backward()
    return trainer.bank.v.grad.clone()


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_cutting_the_batch_keeps_the_gradient(trainer, loss_type: str, beta: float) -> None:
    trainer.loss_type, trainer.beta = loss_type, beta
    trainer.model.train()
    whole = gradient(trainer, [(batch(), 1.0)])
    trainer.micro_batch_tokens = 30
    parts = trainer._micro_batches(batch())
    assert len(parts) >= 2
    assert sum(len(part["advantages"]) for part, _ in parts) == (ROWS if beta else 4)
    torch.testing.assert_close(gradient(trainer, parts), whole, rtol=1e-4, atol=1e-7)
    assert whole.abs().sum() > 0
    trainer.beta = 0.0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_prompts_that_are_shared_change_no_loss(trainer, loss_type: str) -> None:
    """Value and gradient of v against rows that plain transformers computes one by one."""
    trainer.loss_type, trainer.beta = loss_type, 0.1
    trainer.model.train()
    one = batch()
    rows = []
    for prompt, completion in zip(*prompts_and_completions(one), strict=True):
        logits = trainer.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        values = logits.log_softmax(-1).gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)
        rows.append(torch.nn.functional.pad(values, (0, COMPLETION - len(completion))))
    trainer.bank.v.grad = None
    expected = sum(trainer.policy_losses(one, torch.stack(rows), torch.zeros(ROWS, COMPLETION)))
    expected.backward()
    separate = trainer.bank.v.grad.clone()
    pack = packed_part(one)
    assert len(pack.groups) == 2
    torch.testing.assert_close(sum(trainer.losses_of(one, pack)[0]), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(trainer, [(one, 1.0)]), separate, rtol=1e-4, atol=1e-6)
    trainer.beta = 0.0


def test_one_pass_on_policy_gives_the_gradient_of_two(trainer) -> None:
    """Leaving out the pass for the old log-probabilities changes nothing: they are the new ones, detached."""
    from pipeline.training.logprobs import kl_k3, log_probs_without_gradient
    from pipeline.training.trl_hooks import RATIO_CAP

    trainer.loss_type, trainer.beta = "dapo", 0.0
    one = batch()
    old, _ = log_probs_without_gradient(trainer.model, *prompts_and_completions(one), COMPLETION, 1.0, 4096)
    one["sampling_per_token_logps"] = old + 0.5 * torch.randn(old.shape, generator=torch.Generator().manual_seed(1))
    ratio = (old - one["sampling_per_token_logps"]).exp().clamp(max=RATIO_CAP)
    two_passes = gradient(trainer, [(one | {"old_per_token_logps": old, "importance_sampling_ratio": ratio}, 1.0)])
    del one["old_per_token_logps"], one["importance_sampling_ratio"]
    torch.testing.assert_close(gradient(trainer, [(one, 1.0)]), two_passes, rtol=1e-5, atol=1e-8)
    _, _, mismatch = trainer.losses_of(one, packed_part(one))
    assert kl_k3(mismatch, torch.ones_like(mismatch)) > 0.01


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_completion_drawn_twice_is_computed_once(trainer, loss_type: str) -> None:
    trainer.loss_type, trainer.beta = loss_type, 0.0
    doubled = batch()
    for name in doubled:
        if doubled[name].dim():
            doubled[name][2] = doubled[name][0]  # the same prompt, completion, advantage and log-probabilities
            doubled[name][1] = doubled[name][0]
    doubled["num_items_in_batch"] = doubled["completion_mask"].sum()
    whole = gradient(trainer, [(doubled, 1.0)])
    trainer.micro_batch_tokens = 1000
    parts = trainer._micro_batches(doubled)
    assert [len(part["advantages"]) for part, _ in parts] == [2]  # the triple and the other row with an advantage
    torch.testing.assert_close(gradient(trainer, parts), whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_share_of_clipped_tokens_is_logged(trainer, loss_type: str) -> None:
    trainer.loss_type, trainer.epsilon_high = loss_type, 5.0 if loss_type == "cispo" else 0.2
    trainer.model.train()
    trainer._metrics["train"].clear()
    far = batch() | {"advantages": torch.ones(ROWS)}
    far["old_per_token_logps"] = far["old_per_token_logps"] - 50  # ratios far above any bound
    trainer.losses_of(far, packed_part(far))
    with torch.no_grad():
        assert trainer._step_metrics({"grad_norm": 0.0}, trainer.averages())["clip_ratio"] == pytest.approx(1)
    trainer.loss_type, trainer.epsilon_high = "dapo", 0.2


def test_a_batch_without_advantages_has_no_parts(trainer) -> None:
    trainer.record.values.clear()
    assert trainer._micro_batches(batch() | {"advantages": torch.zeros(ROWS)}) == []
    assert trainer.record.values["rows_trained"] == 0


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "auto"])
def test_a_step_makes_what_is_kept_of_the_vector_stale(trainer, optim: str, monkeypatch) -> None:
    """Autograd does not count the steps of fused optimizers, which Unsloth prefers on a CPU."""
    bank, before = trainer.bank, trainer.bank.v.detach().clone()
    for name in ("optimizer", "length"):
        monkeypatch.setattr(trainer, name, None)
    if optim != "auto":
        monkeypatch.setattr(trainer.args, "optim", optim)
        monkeypatch.setattr(trainer, "run_config", replace(trainer.run_config, lr="0.01"))
    optimizer = trainer.create_optimizer()
    if optim == "auto":
        trainer.length.optimizer.observe(torch.randn(8, bank.v.numel()), 8)
    bank.merge_with("stochastic")
    served = bank.served.put(bank.v, [layer.base_layer.weight for layer in bank.layers])
    assert bank.merged_weight(0) is served[0]
    mixings = bank.mixings()
    bank.v.grad = torch.ones_like(bank.v)
    optimizer.step()
    assert not torch.equal(bank.mixings(), mixings)
    merged = bank.merged_weight(0).clone()  # the merger writes into the same scratch
    assert torch.equal(merged, bank.merger.one(0, bank.mixings_of(bank.v)))
    assert not torch.equal(bank.merged_weight(0), served[0])
    bank.merge_with(None)
    bank.served.drop()
    with torch.no_grad():
        bank.v.copy_(before)


def test_prompts_of_a_group_are_tokenised_as_trl_does_each(trainer) -> None:
    from trl import GRPOTrainer

    task = trainer.grader.task
    prompts = [task.prompt.messages(trainer.problems[i]) for i in (2, 0) for _ in range(trainer.num_generations)]
    expected, _, _ = GRPOTrainer._tokenize_prompts(trainer, prompts)
    assert trainer.sampler.prompts([2, 0]) == expected
    assert len(expected) == 8 and expected[0] == expected[3] != expected[4]


def test_a_changed_trl_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import GRPOTrainer

    from pipeline.training.trl_hooks import check_trl

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, batch: None)
    with pytest.raises(RuntimeError, match="_compute_loss changed"):
        check_trl()


def test_rows_of_a_run_extend_without_changing(trainer) -> None:
    from pipeline.training.grpo import training_rows

    short = training_rows(trainer.problems, replace(trainer.run_config, steps=3))["problem"]
    long = training_rows(trainer.problems, replace(trainer.run_config, steps=9))["problem"]
    assert list(long)[: len(short)] == list(short) and len(long) == 18
    assert sorted(list(long)[:4]) == [0, 1, 2, 3]
