"""Dynamic sampling: which groups make a batch, how many are drawn for it, and that a run can be resumed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.dynamic_sampling import Batch, DynamicSampling
from rewards.problem import Problem
from tests.pipeline.training.tiny_trainer import tiny_trainer


def step_of(sampling: DynamicSampling, signals: list[bool], seats: int, seed: int) -> tuple[Batch, int]:
    """One step with an engine that generates `seats` groups at a time and ends them in any order; `signals` by position
    in the order of prompts. Returns the batch and how often the engine had nothing to do but wait."""
    order, idle = random.Random(seed), 0
    start = sampling.position
    done: set[int] = set()

    def has_signal(group: int) -> bool:
        assert group in done, "a verdict was waited for before its group was generated"
        return signals[start + group]

    drawn = sampling.start(has_signal)
    waiting = list(range(drawn))
    while waiting:
        group = order.choice(waiting[:seats])
        waiting.remove(group)
        done.add(group)
        sampling.generated(group)
        idle += not waiting
        count = sampling.more(not waiting)
        waiting += range(drawn, drawn + count)
        drawn += count
    return sampling.finish(), idle


@given(
    wanted=st.integers(1, 12),
    factor=st.floats(1.1, 6),
    share=st.floats(0, 1),
    seats=st.integers(1, 20),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=200)
def test_a_batch_is_the_first_groups_with_a_signal(
    wanted: int, factor: float, share: float, seats: int, seed: int
) -> None:
    sampling = DynamicSampling(wanted, int(wanted * factor))
    chances = random.Random(seed)
    signals = [chances.random() < share for _ in range(4 * sampling.limit)]
    for step in range(4):
        start = sampling.position
        batch, _ = step_of(sampling, signals, seats, seed + step)
        reachable = signals[start : start + sampling.limit]
        with_signal = [group for group, signal in enumerate(reachable) if signal][:wanted]
        assert len(batch.groups) == wanted and batch.groups == sorted(set(batch.groups))
        assert [group for group in batch.groups if reachable[group]] == with_signal
        full = len(with_signal) == wanted
        assert batch.judged == (with_signal[-1] + 1 if full else sampling.limit)
        assert batch.judged <= batch.drawn <= sampling.limit
        assert sampling.position == start + batch.judged
        assert batch.silent == batch.judged - len(with_signal)
        silent = [group for group in range(batch.judged) if not reachable[group]]
        assert [group for group in batch.groups if not reachable[group]] == silent[: wanted - len(with_signal)]


def test_nothing_is_drawn_that_is_not_needed_where_all_groups_have_a_signal() -> None:
    sampling = DynamicSampling(8, 32)
    for _ in range(3):
        batch, idle = step_of(sampling, [True] * 100, 4, 0)
        assert (batch.drawn, batch.judged, idle) == (8, 8, 1)
        assert batch.metrics == {"groups_drawn": 8, "silent_share": 0, "surplus_share": 0}


def test_the_share_seen_so_far_is_drawn_at_once() -> None:
    """A third of the groups with a signal: later steps begin with about three batches, and draw little beside."""
    chances = random.Random(1)
    signals = [chances.random() < 1 / 3 for _ in range(4000)]
    sampling = DynamicSampling(16, 160)
    batches = [step_of(sampling, signals, 32, seed)[0] for seed in range(20)]
    assert sampling.start(lambda group: True) == pytest.approx(48, abs=16)
    assert sum(batch.drawn for batch in batches[5:]) < 1.5 * sum(batch.judged for batch in batches[5:])


def test_groups_are_drawn_while_the_last_ones_are_still_being_graded() -> None:
    """Of six groups that are generated, the verdicts of the last two are not waited for as long as there is work."""
    asked: list[int] = []

    def has_signal(group: int) -> bool:
        asked.append(group)
        return False

    sampling = DynamicSampling(4, 16)
    assert sampling.start(has_signal) == 4
    for group in (2, 0, 3):
        sampling.generated(group)
    assert sampling.more(False) > 0 and asked == [2]
    sampling.generated(1)
    assert sampling.more(False) >= 0 and asked == [2, 0]


def test_the_order_goes_on_from_a_kept_state() -> None:
    chances = random.Random(3)
    signals = [chances.random() < 0.5 for _ in range(400)]
    whole, first, second = (DynamicSampling(6, 24) for _ in range(3))
    expected = [step_of(whole, signals, 5, seed)[0] for seed in range(4)]
    found = [step_of(first, signals, 5, seed)[0] for seed in range(2)]
    second.restore(first.state())
    found += [step_of(second, signals, 5, seed)[0] for seed in range(2, 4)]
    assert found == expected


def rounded(completion: str) -> float:
    """A reward that many groups of four agree in."""
    return float(sum(map(ord, completion)) % 3 == 0)


MANY = [Problem(str(i), f"What is {i}?", answer=str(i)) for i in range(11)]
DYNAMIC: dict[str, Any] = {"dynamic_sampling": True, "dynamic_limit": 6.0, "prompts_per_step": 3, "problems": MANY}


@pytest.mark.integration
def test_a_resumed_run_draws_the_same_groups(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Bit for bit the same vector, from the same prompts in the same order; no trained group is without a signal."""

    def run(name: str, steps: int, checkpoint: str | None = None) -> tuple[Any, list[dict[str, Any]]]:
        records: list[dict[str, Any]] = []
        told: dict[str, Any] = {"reward": rounded, "on_step": records.append, "steps": steps, "lr": "0.01"}
        trainer = tiny_trainer(tiny_model_folder, tmp_path / name, **told, **DYNAMIC)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer, records

    whole, expected = run("whole", 4)
    run("cut", 2)
    resumed, found = run("cut", 4, str(tmp_path / "cut" / "checkpoint-2"))
    assert torch.equal(resumed.bank.v, whole.bank.v)
    for name in ("groups_drawn", "silent_share", "surplus_share", "v", "reward", "verdicts", "tokens"):
        assert [record[name] for record in found] == [record[name] for record in expected[2:]]
    drawn = [record["groups_drawn"] for record in expected]
    assert max(drawn) > 3 and sum(record["silent_share"] for record in expected) > 0
    assert all(record["zero_variance_groups"] == 0 for record in expected if record["groups_drawn"] < 18)
    judged = sum(round(record["groups_drawn"] * (1 - record["surplus_share"])) for record in expected)
    assert whole.dynamic.sampling.position == judged


@pytest.mark.integration
def test_a_group_is_judged_as_the_trainer_rewards_it(tiny_model_folder: Path, tmp_path: Path) -> None:
    """`has_signal` from the task's own rewards, against the advantages that TRL makes; masked completions count not."""
    trainer = tiny_trainer(tiny_model_folder, tmp_path / "run", reward=None, steps=2, overlong_cache=4, **DYNAMIC)
    seen: list[bool] = []
    judge = trainer.dynamic.has_signal

    def has_signal(*arguments: Any) -> bool:
        seen.append(judge(*arguments))
        return seen[-1]

    trainer.dynamic.has_signal = has_signal
    batch = trainer._generate_and_score_completions([next(iter(trainer.train_dataset))] * 12)
    advantages = batch["advantages"].view(3, 4)
    assert len(seen) >= 3 and batch["completion_ids"].shape[0] == 12
    assert sum((advantages != 0).any(dim=1).tolist()) == min(3, sum(seen))
    from pipeline.rollout import Completion
    from rewards.verdict import Status, Verdict

    cut, whole = Completion([9] * 12, [0.0] * 12), Completion([9, 2], [0.0] * 2)
    judged = [Verdict(Status.WRONG_ANSWER, total=1)] * 4
    of = [MANY[0]] * 4
    assert judge(of, [cut, cut, whole, whole], judged)  # the penalty makes a difference
    scoring = trainer.scoring
    trainer.dynamic.scoring = replace(scoring, config=replace(scoring.config, mask_truncated=True))
    assert judge(of, [cut, cut, whole, whole], judged)
    cut_shorter = Completion([9] * 11, [0.0] * 11)
    assert not judge(of, [cut, cut, cut_shorter, cut_shorter], judged)
    nobody = [Verdict(Status.NO_VERDICT)] * 2 + judged[:2]
    trainer.dynamic.scoring = scoring
    trainer.dynamic.scales = {"easy": 0.0}
    assert not judge([replace(MANY[0], source="easy")] * 4, [cut, cut, whole, whole], judged)
    assert not judge(of, [cut, cut, whole, whole], nobody)
