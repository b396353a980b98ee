"""Batches drawn a step ahead: by which policy, in which order, against which weights, and that a run can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import LOSS_TYPES, ConfigError, Settings
from pipeline.rollout.engine import EngineError
from rewards.problem import Problem
from rewards.verdict import Status, Verdict
from tests.pipeline.training.test_losses import gradient_of, row_terms
from tests.pipeline.training.tiny_trainer import tiny_trainer

MANY = [Problem(str(i), f"What is {i}?", answer=str(i)) for i in range(11)]
Made = Callable[..., Any]


@pytest.fixture
def made(tiny_model_folder: Path, tmp_path: Path) -> Made:
    def make(name: str = "run", **settings: Any) -> Any:
        return tiny_trainer(tiny_model_folder, tmp_path / name, problems=MANY, lr="0.05", **settings)

    return make


def watched(trainer: Any) -> list[Any]:
    """The batches that the trainer will train."""
    seen: list[Any] = []
    roll_out = trainer.roll_out

    def watching(problems: list[int]) -> Any:
        seen.append(roll_out(problems))
        return seen[-1]

    trainer.roll_out = watching
    return seen


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"dynamic_sampling": True}, "--dynamic-sampling waits for the verdicts"),
        ({"num_iterations": 2}, "up to 3 steps after they were drawn"),
    ],
)
def test_what_needs_the_newest_batch_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Settings(staleness=1, **settings)


@pytest.mark.integration
def test_every_batch_is_trained_once_by_the_policy_after_the_one_that_drew_it(made: Made) -> None:
    records: list[dict[str, Any]] = []
    now, ahead = made("now", steps=5), made("ahead", steps=5, staleness=1, on_step=records.append)
    batches = {trainer: watched(trainer) for trainer in (now, ahead)}
    for trainer in (now, ahead):
        trainer.train()
    assert [batch.problems for batch in batches[ahead]] == [batch.problems for batch in batches[now]]
    versions = [{version for row in batch.versions for version in row} for batch in batches[ahead]]
    assert versions == [{0}, {0}, {1}, {2}, {3}]
    assert batches[ahead][0].completions == batches[now][0].completions  # the same seeds, the same policy
    assert batches[ahead][1].completions != batches[now][1].completions
    # engine and trainer are one model here: what is left is the step between drawing and training
    assert all(record["mismatch"] < 1e-9 for record in records[:-1]) and "mismatch" not in records[-1]
    assert records[0]["off_policy"] < 1e-9 and all(record["off_policy"] > 1e-7 for record in records[1:])
    assert ahead.sampler.policy.version == 4


@pytest.mark.integration
def test_a_resumed_run_draws_the_batch_in_flight_as_it_was_drawn(made: Made) -> None:
    """Bit for bit the same vector, wherever the run was cut, also before its last step."""
    whole_records: list[dict[str, Any]] = []
    whole = made("whole", steps=4, staleness=1, on_step=whole_records.append)
    whole.train()
    for cut in (2, 3):
        records: list[dict[str, Any]] = []
        made(f"cut-{cut}", steps=4, staleness=1, on_step=lambda record, cut=cut: record["step"] == cut).train()
        resumed = made(f"cut-{cut}", steps=4, staleness=1, on_step=records.append)
        resumed.train(resume_from_checkpoint=str(resumed.folder.path / f"checkpoint-{cut}"))
        assert torch.equal(resumed.bank.v, whole.bank.v)
        timed = ("seconds", "tokens_per_second", "grading_hidden", "idle")
        for found, expected in zip(records, whole_records[cut:], strict=True):
            assert {k: v for k, v in found.items() if k not in timed} == {
                k: v for k, v in expected.items() if k not in timed
            }


@pytest.mark.integration
@pytest.mark.parametrize("steps", [1, 2])
def test_the_first_step_is_compared_with_the_engine_though_it_be_the_last(made: Made, steps: int) -> None:
    trainer = made(steps=steps, staleness=1)
    generate = trainer.sampler.policy.engine.generate

    def another_policy(*arguments: Any) -> Any:
        return [replace(one, log_probs=[x - 1 for x in one.log_probs]) for one in generate(*arguments)]

    trainer.sampler.policy.engine.generate = another_policy
    with pytest.raises(EngineError, match="nats a token"):
        trainer.train()


@pytest.mark.integration
def test_verdicts_are_waited_for_only_after_the_next_batch_was_drawn(made: Made) -> None:
    """Graders that judge nothing of a batch before a completion of the next one reaches them would stop any run that
    waits earlier."""
    trainer = made(steps=3, staleness=1, reward=None)
    size, steps = trainer.run_config.batch_size, 3
    futures: list[Future[Verdict]] = []

    def grade(pool: None, completion: str, problem: Problem) -> Future[Verdict]:
        futures.append(Future())
        done = futures[-1:] if len(futures) > (steps - 1) * size else []
        for future in [*futures[: (len(futures) - 1) // size * size], *done]:
            if not future.done():
                future.set_result(Verdict(Status.WRONG_ANSWER, total=1))
        return futures[-1]

    object.__setattr__(trainer.grader.task, "grade", grade)
    trainer.train()
    assert len(futures) == steps * size and trainer.state.global_step == steps


@pytest.mark.integration
def test_late_verdicts_hold_their_own_group_only(made: Made) -> None:
    """Those of the first group come when all others are trained; nothing is lost of either."""
    trainer = made(steps=1, staleness=1, reward=None, prompts_per_step=3)
    late: list[Future[Verdict]] = []
    parts: list[list[int]] = []
    train_on = trainer.train_on

    def grade(pool: None, completion: str, problem: Problem) -> Future[Verdict]:
        future: Future[Verdict] = Future()
        if problem is first:
            late.append(future)
        else:
            future.set_result(Verdict(Status.WRONG_ANSWER, total=1))
        return future

    def training(batch: dict[str, Any]) -> Any:
        parts.append(sorted(set(batch["group"].tolist())))
        for future in late:
            future.set_result(Verdict(Status.ACCEPTED, 1, 1, True)) if not future.done() else None
        return train_on(batch)

    first = MANY[trainer.train_dataset["problem"][0]]
    object.__setattr__(trainer.grader.task, "grade", grade)
    trainer.train_on = training
    trainer.train()
    assert parts == [[1, 2], [0]]
    assert [verdict.accepted for verdict in trainer.rollouts.verdicts] == [True] * 4 + [False] * 8
    assert trainer.state.log_history[0]["reward"] == pytest.approx(sum(trainer.rollouts.totals) / 12)


@pytest.mark.integration
def test_several_replicas_get_a_group_each(made: Made) -> None:
    """While there are so many: a single one would be one share, which the driver trains alone."""
    trainer = made(steps=1, staleness=1, prompts_per_step=3)
    trainer.roll_out([])
    grading, judging = trainer.judging.drawn.grading, trainer.judging
    done: list[int] = [0, 1, 2, 3]  # the rows of a group
    grading.is_done = done.__contains__
    grading.wait_for_any = lambda rows: done.extend(range(len(done), len(done) + 4))
    assert judging.complete(1) == [0] and len(done) == 4
    assert judging.complete(2) == [0, 1] and len(done) == 8
    judging.left = [2]
    assert judging.complete(5) == [2]


@pytest.mark.integration
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_gradient_is_that_of_truncated_importance_sampling(made: Made, loss_type: str) -> None:
    """Σ min(π / μ, 2) A ∇ log π of every token, over the normaliser of the whole batch, whose groups are trained one
    after the other: π is trained, μ drew, a step before."""
    trainer = made(steps=3, staleness=1, loss_type=loss_type)
    trainer.roll_out([])
    with torch.no_grad():  # a far step, so that some ratios are cut
        trainer.bank.v.add_(0.4 * torch.randn(trainer.bank.v.shape, generator=torch.Generator().manual_seed(3)))
    trainer.state.global_step = 1
    batch = trainer._generate_and_score_completions([{"problem": 0}])
    assert {version for row in trainer.rollouts.versions for version in row} == {0}
    log_probs, _ = row_terms(trainer, batch)
    assert batch["advantages"].isnan().all()  # of a batch that is still being graded
    trainer.judging.judge(trainer.judging.left)
    trainer.judging.left = [1, 0]  # judged again as it is trained, one group after the other
    trainer.judging.complete = lambda least: trainer.judging.left[:1]
    advantages = torch.tensor(trainer.rollouts.advantages).double()[batch["row"]].unsqueeze(1)
    mask = batch["completion_mask"].double()
    ratio = (log_probs.detach() - batch["sampling_per_token_logps"].double()).exp()
    terms = -ratio.clamp(max=2) * advantages * log_probs * mask
    of_row = {"grpo": mask.sum(1) * len(mask), "dr_grpo": torch.full((len(mask),), 12.0 * len(mask)).double()}
    loss = (terms.sum(1) / of_row.get(loss_type, mask.sum().expand(len(mask)))).sum()
    expected = gradient_of(loss, trainer)

    trainer._prepare_inputs = lambda inputs: batch
    trainer.bank.v.grad = None
    trainer.training_step(trainer.model, batch)
    torch.testing.assert_close(trainer.bank.v.grad.double(), expected, rtol=1e-3, atol=1e-6)
    cut = ((ratio > 2) & mask.bool() & (advantages != 0)).sum() / (mask * (advantages != 0)).sum()
    assert trainer.record.values["ratios_cut"] == pytest.approx(float(cut), abs=0.02) and cut > 0.01
    rollouts = trainer.rollouts
    with pytest.raises(RuntimeError, match="with --staleness 0"):
        replace(rollouts).check_version(1)
