"""What shapes the loss and the step beside GRPO itself, each against its formula in float64, computed apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config import LOSS_TYPES, Settings
from tests.pipeline.training.tiny_trainer import tiny_trainer

Made = Callable[..., Any]


@pytest.fixture
def made(tiny_model_folder: Path, tmp_path: Path) -> Made:
    return lambda **settings: tiny_trainer(tiny_model_folder, tmp_path / "run", **settings)


def rolled_out(trainer: Any) -> dict[str, Any]:
    return trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(4)][:8])


def end_some(trainer: Any) -> None:
    """Let three completions of each group end after 5, 6 and 7 tokens: the random model's hardly ever do."""
    generate = trainer.sampler.policy.engine.generate

    def ending(prompts: Any, sampling: Any, finished: Any, more: Any) -> Any:
        from pipeline.rollout import Completion

        completions = generate(prompts, sampling, lambda *_: None, more)
        for row, completion in enumerate(completions):
            if row % 4 != 3:
                completions[row] = Completion(
                    [*completion.token_ids[: 4 + row % 4], 2], completion.log_probs[: 5 + row % 4]
                )
            finished(row, completions[row])
        return completions

    trainer.sampler.policy.engine.generate = ending


def row_terms(trainer: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(B, T) log p and entropy of every completion token, differentiable in v, through the model's own logits."""
    shape = batch["completion_ids"].shape
    log_probs, entropies = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    for row in range(shape[0]):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        ids = batch["completion_ids"][row]
        logits = trainer.model(torch.cat([prompt, ids]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1].double()
        scores = logits.log_softmax(dim=-1)
        log_probs[row] = scores.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        entropies[row] = -(scores.exp() * scores).sum(dim=-1)
    return log_probs, entropies


def gradient_of(loss: Tensor, trainer: Any) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, trainer.bank.v)
    return gradient.double()


def stepped(trainer: Any, batch: dict[str, Any]) -> Tensor:
    """The gradient that a training step leaves for the optimizer."""
    trainer._prepare_inputs = lambda inputs: batch
    trainer.bank.v.grad = None
    trainer.training_step(trainer.model, batch)
    return trainer.bank.v.grad.double()


@settings(deadline=None)
@given(limit=st.integers(2, 400), share=st.floats(0, 1), length=st.integers(1, 400))
def test_the_penalty_for_overlong_completions_is_that_of_dapo(limit: int, share: float, length: int) -> None:
    """Equation 13: 0 up to L_max − L_cache, then ((L_max − L_cache) − |y|) / L_cache, and −1 beyond L_max."""
    from pipeline.config import resolved
    from pipeline.tasks.code import TASK as CODE
    from pipeline.training.grpo import training_task

    def config(**given: Any) -> Any:
        return resolved(Settings(**given), starter=True, gpu=False)

    cache = 1 + int(share * (limit - 2))
    task = training_task(CODE, config(overlong_cache=cache, max_completion_length=limit))
    penalty = task.rewards[-1]
    assert penalty.weight == 1 and penalty.of_text is not None and len(task.rewards) == 2
    expected = 0.0 if length <= limit - cache else ((limit - cache) - length) / cache if length <= limit else -1.0
    assert penalty.of_text(prompts=[""], completions=[""], completion_ids=[[7] * length]) == [pytest.approx(expected)]
    assert len(training_task(CODE, config(max_completion_length=limit)).rewards) == 1


@pytest.mark.integration
def test_overlong_completions_lose_reward_and_nobody_else_does(made: Made) -> None:
    """The advantages of a rollout are those of reward + penalty, from the lengths that were sampled."""
    trainer = made(overlong_cache=8, scale_rewards="group")
    end_some(trainer)
    batch = rolled_out(trainer)
    lengths = batch["completion_mask"].sum(dim=1).double()
    texts = trainer.rollouts.texts
    weight = trainer.grader.task.rewards[0].weight
    rewards = torch.tensor([weight * (sum(map(ord, text)) % 7) for text in texts]).double()
    rewards = (rewards - (lengths - 4).clamp(min=0) / 8).view(-1, 4)
    expected = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-4)
    torch.testing.assert_close(batch["advantages"].double(), expected.flatten(), rtol=1e-4, atol=1e-5)
    penalties = trainer.rollouts.scores["soft_overlong_punishment_reward"]
    assert lengths.max() == 12 and penalties[int(lengths.argmax())] == -1


@pytest.mark.integration
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_truncated_completions_have_no_gradient(made: Made, loss_type: str) -> None:
    """Of each group one completion is cut. The loss is that of the others, with the advantages of the whole group; they
    count in a mean over rows, and their tokens in none over tokens."""
    trainer = made(mask_truncated=True, loss_type=loss_type, lr="0.01")
    end_some(trainer)
    trainer.mismatch = 0.0  # else the ends put there look like an engine with another policy
    batch = rolled_out(trainer)
    whole = torch.tensor([row % 4 != 3 for row in range(8)])
    assert batch["advantages"][~whole].abs().min() > 0  # they would be trained
    assert [record["tokens"] for record in trainer.record.rollouts][3] == 12
    log_probs, _ = row_terms(trainer, batch)
    lengths = torch.tensor([record["tokens"] for record in trainer.record.rollouts])
    mask = (torch.arange(12) < lengths.unsqueeze(1))[:, : log_probs.shape[1]].double() * whole.unsqueeze(1)
    weight = (log_probs.detach() - batch["sampling_per_token_logps"]).exp().clamp(max=2)  # of the ends put there
    weight = weight * batch["advantages"].double().unsqueeze(1)
    tokens = -weight * (log_probs if loss_type == "cispo" else (log_probs - log_probs.detach()).exp())
    loss = {
        "grpo": ((tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean(),
        "dr_grpo": (tokens * mask).sum() / (8 * 12),
    }.get(loss_type, (tokens * mask).sum() / mask.sum())
    expected = gradient_of(loss, trainer)
    trainer.micro_batch_tokens = 60
    torch.testing.assert_close(stepped(trainer, batch), expected, rtol=1e-3, atol=1e-5)
    assert trainer.record.values["rows_trained"] <= 6 / 8 and expected.abs().sum() > 0


@pytest.mark.integration
@pytest.mark.parametrize("iterations", [1, 2])
def test_gspo_is_that_of_its_paper(made: Made, iterations: int) -> None:
    """Equations 5 to 7 of arXiv 2507.18071: s = (π(y) / π_old(y))^(1/|y|), J = mean over y of min(s A, clip(s) A)."""
    trainer = made(importance_sampling_level="sequence", loss_type="grpo", lr="0.01", epsilon=0.02,
                   num_iterations=iterations)  # fmt: skip
    batch = rolled_out(trainer)
    if iterations == 2:  # the policy has moved since
        with torch.no_grad():
            trainer.bank.v.add_(0.4 * torch.randn(trainer.bank.v.shape, generator=torch.Generator().manual_seed(1)))
    log_probs, _ = row_terms(trainer, batch)
    old = batch["old_per_token_logps"].double() if iterations == 2 else log_probs.detach()
    mask = batch["completion_mask"].double()
    ratio = (((log_probs - old) * mask).sum(dim=1) / mask.sum(dim=1)).exp()
    advantages = batch["advantages"].double()
    clipped = torch.min(ratio * advantages, ratio.clamp(0.98, 1.02) * advantages)
    if iterations == 2:
        assert (ratio > 1.02).any() or (ratio < 0.98).any()
    expected = gradient_of(-clipped.mean(), trainer)
    trainer.micro_batch_tokens = 60
    torch.testing.assert_close(stepped(trainer, batch), expected, rtol=2e-3, atol=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("lr", ["auto", "0.01"])
@pytest.mark.parametrize("loss_type, iterations", [("dapo", 1), ("grpo", 1), ("bnpo", 2)])
def test_the_entropy_bonus_is_the_mean_over_all_tokens(made: Made, lr: str, loss_type: str, iterations: int) -> None:
    """∂/∂v of loss − c H, H the mean entropy over all tokens of the batch, those of groups without a signal, too, and
    however it is cut. The scores of which F is made do not see it."""

    def first_group(completion: str) -> float:
        return float(len(completion) % 3)

    told: dict[str, Any] = {"lr": lr, "loss_type": loss_type, "num_iterations": iterations, "steps": 2}
    trainer = made(entropy_bonus=0.3, reward=first_group, **told)
    if lr == "auto":
        trainer.create_optimizer()
    batch = rolled_out(trainer)
    batch["advantages"][4:] = 0
    mask = batch["completion_mask"].double()
    log_probs, entropies = row_terms(trainer, batch)
    bonus = 0.3 * (entropies * mask).sum() / mask.sum()
    trainer.micro_batch_tokens = 60
    with_bonus, scores = stepped(trainer, batch), scores_of(trainer)
    object.__setattr__(trainer.run_config, "entropy_bonus", 1e-30)  # cuts the batch in the same way
    stepped(trainer, batch)
    torch.testing.assert_close(scores, scores_of(trainer), rtol=1e-4, atol=1e-5)
    assert lr != "auto" or scores.abs().max() > 0.1
    object.__setattr__(trainer.run_config, "entropy_bonus", 0.0)
    without = stepped(trainer, batch)
    expected = without - gradient_of(bonus, trainer)
    torch.testing.assert_close(with_bonus, expected, rtol=1e-3, atol=1e-5)
    assert (with_bonus - without).abs().max() > 1e-3


@pytest.mark.integration
def test_a_penalty_on_the_kl_leaves_the_fisher_matrix_what_it_is(made: Made) -> None:
    """The penalty's weights of a row's tokens tell nothing of the row's score, however large they are beside those of
    the policy's loss: F is made before them, of the rows that have an advantage."""
    moments, counts = {}, {}
    for beta in (0.0, 1.0):
        trainer = made(lr="auto", beta=beta)
        trainer.create_optimizer()
        batch = rolled_out(trainer)
        batch["advantages"] *= 0.03
        batch["advantages"][4:] = 0
        stepped(trainer, batch)
        counts[beta] = trainer.length.optimizer._count
        scores = scores_of(trainer)
        moments[beta] = scores.mT @ scores
    assert counts[1.0] == counts[0.0] == int((batch["advantages"] != 0).sum())
    torch.testing.assert_close(moments[1.0], moments[0.0], rtol=1e-3, atol=1e-4 * float(moments[0.0].trace()))


@pytest.mark.integration
def test_a_step_has_its_kl_where_few_completions_are_drawn_often(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one token from a peaked policy, whose exact KL is a sum over the vocabulary."""
    monkeypatch.setattr("pipeline.training.kl_step.signal_share", lambda *_: 1.0)
    heat, size, records = 0.2, 64, list[dict[str, Any]]()

    def reward(text: str) -> float:
        return float(sum(map(ord, text)) % 2)

    drawing = {"num_generations": size, "max_completion_length": 1, "temperature": heat}
    trainer = made(lr="auto", reward=reward, on_step=records.append, **drawing)

    def distributions(rows: list[list[int]]) -> Tensor:
        with torch.no_grad():
            logits = torch.stack([trainer.model(torch.tensor([row])).logits[0, -1] for row in rows]).double()
        return (logits / heat).log_softmax(dim=-1)

    before: list[Tensor] = []
    roll_out = trainer.roll_out

    def rolled_out_once(problems: list[int]) -> Any:
        rollouts = roll_out(problems)
        trained = [row for row in range(0, len(rollouts), size) if any(rollouts.advantages[row : row + size])]
        before.append(distributions([rollouts.prompts[row] for row in trained]))
        trainer.asked = [rollouts.prompts[row] for row in trained]
        return rollouts

    trainer.roll_out = rolled_out_once
    trainer.train()
    old, new = before[0], distributions(trainer.asked)
    exact = float((old.exp() * (old - new)).sum(dim=-1).mean())
    assert old.exp().amax(dim=-1).max() > 0.5  # so most of what is drawn is drawn again
    assert records[0]["step_kl"] == pytest.approx(exact, rel=0.7) and exact == pytest.approx(0.04, rel=0.7)


@pytest.mark.integration
def test_groups_of_one_problem_are_told_apart_however_the_batch_is_cut(made: Made) -> None:
    """Three groups of two problems in a step: what flows back through a prompt belongs to one group."""
    found = []
    for budget in (16384, 250):  # one group in a part
        records: list[dict[str, Any]] = []
        made(lr="auto", prompts_per_step=3, micro_batch_tokens=budget, on_step=records.append).train()
        found.append([records[0][name] for name in ("step_signal", "step_kl_predicted")])
    assert found[0] == pytest.approx(found[1], rel=1e-2)


@pytest.mark.integration
@pytest.mark.parametrize("budget", [60, 1000])
def test_the_clip_share_is_that_of_all_trained_tokens(made: Made, budget: int) -> None:
    """Of cispo: tokens whose ratio is above the largest weight, however the batch is cut into parts."""
    trainer = made(lr="0.01", loss_type="cispo", num_iterations=2, steps=2, epsilon_high=1.05)
    end_some(trainer)
    trainer.mismatch = 0.0  # else the ends put there look like an engine with another policy
    batch = rolled_out(trainer)
    batch["advantages"][:4] = 0
    with torch.no_grad():
        trainer.bank.v.add_(0.4 * torch.randn(trainer.bank.v.shape, generator=torch.Generator().manual_seed(1)))
    log_probs, _ = row_terms(trainer, batch)
    ratio, advantages = (log_probs.detach() - batch["old_per_token_logps"]).exp(), batch["advantages"].unsqueeze(1)
    mask = batch["completion_mask"] * (advantages != 0)
    trainer.micro_batch_tokens = budget
    stepped(trainer, batch)
    parts = len(trainer._metrics["train"]["cispo_clip_ratio"])
    clipped = ((ratio > 1.05) & (advantages > 0)) * mask
    assert trainer.averages()["cispo_clip_ratio"] == pytest.approx(float(clipped.sum() / mask.sum()), rel=1e-4)
    assert (parts > 1) == (budget == 60) and clipped.any()


@pytest.mark.integration
def test_a_run_that_ended_within_a_batch_goes_on_in_step_with_one_that_did_not(made: Made) -> None:
    """Its batch is drawn again for the step that is left of it; the next one is trained twice, as ever."""
    records: list[dict[str, Any]] = []
    first = made(lr="0.01", num_iterations=2, steps=3)
    first.train()
    again = made(lr="0.01", num_iterations=2, steps=6, on_step=records.append)
    again.train(resume_from_checkpoint=str(first.folder.path / "checkpoint-3"))
    assert [(record["step"], "tokens" in record) for record in records] == [(4, True), (5, True), (6, False)]


@pytest.mark.integration
def test_the_penalty_on_the_kl_is_weighted_as_the_policy_is(made: Made) -> None:
    """β · min(π / π_old, …) does not bound it: the k3 of every token is multiplied by its unclipped ratio, so that its
    gradient is that of the KL itself (TRL's `use_bias_correction_kl`)."""
    trainer = made(lr="0.01", loss_type="dapo", num_iterations=2, steps=2, beta=0.1)
    batch = rolled_out(trainer)
    with torch.no_grad():
        trainer.bank.v.add_(0.4 * torch.randn(trainer.bank.v.shape, generator=torch.Generator().manual_seed(1)))
    log_probs, _ = row_terms(trainer, batch)
    mask, advantages = batch["completion_mask"].double(), batch["advantages"].double().unsqueeze(1)
    ratio = (log_probs - batch["old_per_token_logps"].double()).exp()
    policy = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    away = batch["ref_per_token_logps"].double() - log_probs
    penalty = ratio * (away.exp() - away - 1)
    weight = batch["importance_sampling_ratio"].double()
    expected = gradient_of((((-policy * weight) + 0.1 * penalty) * mask).sum() / mask.sum(), trainer)
    torch.testing.assert_close(stepped(trainer, batch), expected, rtol=1e-3, atol=1e-6)


def scores_of(trainer: Any) -> Tensor:
    """The scores of the last pass, of which F is made; none without `--lr auto`."""
    if trainer.length is None:
        return torch.zeros(0)
    scores, trainer.length.optimizer._scores = torch.cat(trainer.length.optimizer._scores), []
    return scores


def adam(gradients: list[Tensor], betas: tuple[float, float], eps: float) -> list[Tensor]:
    """The directions m / (√v + eps) of Adam (Kingma and Ba, 2015), with corrected biases."""
    first, second, directions = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0]), []
    for step, gradient in enumerate(gradients, 1):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        corrected = (second / (1 - betas[1] ** step)).sqrt() + eps
        directions.append(first / (1 - betas[0] ** step) / corrected)
    return directions


@pytest.mark.integration
@pytest.mark.parametrize("lr", ["auto", "0.01"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_steps_are_adams_with_warm_up_betas_and_clipping(made: Made, lr: str, clip: float) -> None:
    """Whole runs: v follows Adam of the clipped gradients; a warm-up of three steps makes their lengths 1/4, 2/4, 3/4,
    4/4 of the rate, and with auto the KL that is asked for the squares of these."""
    gradients: list[Tensor] = []
    vectors: list[Tensor] = []
    records: list[dict[str, Any]] = []

    def on_step(record: dict[str, Any]) -> None:
        records.append(record)
        vectors.append(trainer.bank.v.detach().double().clone())

    trainer = made(lr=lr, steps=6, warmup_steps=3, adam_beta1=0.6, adam_beta2=0.9, max_grad_norm=clip, on_step=on_step)
    vectors.append(trainer.bank.v.detach().double().clone())
    step = trainer.training_step

    def seen(*arguments: Any) -> Any:
        loss = step(*arguments)
        gradients.append(trainer.bank.v.grad.double().clone())
        return loss

    trainer.training_step = seen
    trainer.train()
    norms = [float(gradient.norm()) for gradient in gradients]
    assert max(norms) > 0.05 and len(norms) == 6
    assert [record["grad_norm"] for record in records] == pytest.approx(norms, rel=1e-4)
    clipped = [g * min(1.0, clip / norm) if clip else g for g, norm in zip(gradients, norms, strict=True)]
    shares = [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]
    for index, direction in enumerate(adam(clipped, (0.6, 0.9), 1e-12 if lr == "auto" else 1e-8)):
        moved = vectors[index + 1] - vectors[index]
        length = records[index]["lr"] if lr == "auto" else 0.01 * shares[index]
        torch.testing.assert_close(moved, -length * direction, rtol=1e-3, atol=1e-6)
        if lr == "auto":
            assert records[index].get("step_kl_predicted", 0.0) == pytest.approx(
                0.04 * (shares[index] * records[index]["step_signal"]) ** 2, rel=1e-3
            )


@pytest.mark.integration
@pytest.mark.parametrize("iterations", [1, 2])
def test_the_kl_of_every_step_is_measured(made: Made, iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """k3 of the completions' tokens from the policy before a step to that after it, also where a batch is trained
    again; it corrects what is predicted."""
    monkeypatch.setattr("pipeline.training.kl_step.signal_share", lambda *_: 1.0)  # so that every step is made
    records: list[dict[str, Any]] = []
    vectors: list[Tensor] = []

    def on_step(record: dict[str, Any]) -> None:
        records.append(record)
        vectors.append(trainer.bank.v.detach().clone())

    trainer = made(lr="auto", steps=4, num_iterations=iterations, on_step=on_step)
    vectors.append(trainer.bank.v.detach().clone())
    trainer.train()
    assert all(record["step_kl_predicted"] > 0 and record["step_kl"] > 0 for record in records)
    rows = [row for row, advantage in enumerate(trainer.rollouts.advantages) if advantage]
    prompts, completions = (
        [column[row] for row in rows]
        for column in (trainer.rollouts.prompts, [c.token_ids for c in trainer.rollouts.completions])
    )
    values = []
    for v in vectors:
        with torch.no_grad():
            trainer.bank.v.copy_(v)
        values.append(trainer._log_probs_of(prompts, completions, 12)[0].double())
    for step in range(4 - iterations, 4):  # those of the last batch
        moved = values[step + 1] - values[step]
        assert records[step]["step_kl"] == pytest.approx(float((moved.expm1() - moved).sum()) / len(rows), rel=1e-3)
    assert records[-1]["step_kl_correction"] != records[-2]["step_kl_correction"] != 1
