"""Early stop: on what is no number at once, on a far or stale policy after a few steps, never on the reward."""

from __future__ import annotations

import pytest

from pipeline.collapse import PATIENCE, CollapseWatch


def record(step: int, **values) -> dict:
    return {"step": step, "loss": 0.1, "grad_norm": 0.2, "v_norm": 0.3, "kl_base": 0.01, "entropy": 0.2} | values


@pytest.mark.parametrize("name", ["loss", "grad_norm", "v_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_stops_at_once(name: str, value: float) -> None:
    assert name in str(CollapseWatch(1, 0.01).check(record(7, **{name: value})))


@pytest.mark.parametrize("bad", [{"kl_base": 2.0}, {"kl_base": float("nan")}, {"entropy": 0.001}])
def test_a_collapse_must_last(bad: dict) -> None:
    watch = CollapseWatch(1, 0.01)
    for step in range(PATIENCE - 1):
        assert watch.check(record(step, **bad)) is None
    assert watch.check(record(8)) is None  # recovered: the count starts anew
    for step in range(PATIENCE - 1):
        assert watch.check(record(10 + step, **bad)) is None
    assert watch.check(record(20, **bad)) is not None


def test_a_resumed_run_remembers_and_zero_switches_off() -> None:
    earlier = [record(step, kl_base=5.0) for step in range(PATIENCE - 1)]
    assert CollapseWatch(1, 0.01, earlier).check(record(9, kl_base=5.0)) is not None
    watch = CollapseWatch(0, 0)
    assert all(watch.check(record(step, kl_base=50.0, entropy=0.0)) is None for step in range(9))


def test_the_reward_is_never_looked_at() -> None:
    watch = CollapseWatch(1, 0.01)
    assert all(watch.check(record(step, reward=0.0, pass_rate=0.0, reward_std=0.0)) is None for step in range(20))


def test_steps_without_rollouts_count_for_nothing() -> None:
    watch = CollapseWatch(1, 0.01)
    for step in range(9):
        reused = {"step": step, "loss": None, "grad_norm": 0.1, "v_norm": 0.1}
        assert watch.check(reused) is None
