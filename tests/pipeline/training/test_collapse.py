"""Early stop: on what is no number at once, on a far or stale policy after a few steps, never on the reward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapters import read_checkpoint
from pipeline.policy.models import STARTER_FOLDER
from pipeline.rollout import Completion, sampled_entropy
from pipeline.run_folder import read_json, read_json_lines
from pipeline.training.collapse import PATIENCE, CollapseWatch, JudgeWatch
from tests.forked import Forks


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


def test_a_run_without_rows_to_train_on_is_idle_but_not_collapsed() -> None:
    watch = CollapseWatch(1, 0.01, idle_limit=5)
    assert all(watch.check(record(step, rows_trained=0.0)) is None for step in range(4))
    assert watch.check(record(4, rows_trained=0.1)) is None
    assert all(watch.check(record(step, rows_trained=0)) is None for step in range(4))
    assert "no row had an advantage for 5 steps" in str(watch.check(record(9, rows_trained=0))) and not watch.collapsed
    alike, other = "earned the same reward", "were cut and masked, or have an --advantage-scale of 0"
    for share, why in ((1.0, alike), (1 - 1e-15, alike), (0.5, other)):  # as a sum over groups is
        cut = CollapseWatch(1, 0.01, idle_limit=1)
        assert why in str(cut.check(record(1, rows_trained=0.0, zero_variance_groups=share)))
    again = CollapseWatch(1, 0.01, idle_limit=2)  # the second step is on the batch of the first
    again.check(record(1, rows_trained=0.0, zero_variance_groups=0.5))
    assert other in str(again.check(record(2, rows_trained=0.0)))
    never = CollapseWatch(1, 0.01, idle_limit=0)
    assert all(never.check(record(step, rows_trained=0)) is None for step in range(99))
    stale = CollapseWatch(1, 0.01, idle_limit=PATIENCE)
    reasons = [stale.check(record(step, rows_trained=0, entropy=0.0)) for step in range(PATIENCE)]
    assert "entropy" in str(reasons[-1]) and stale.collapsed


def test_the_entropy_is_that_of_all_sampled_tokens() -> None:
    completions = [Completion([1, 2, 3], [-1.0, -2.0, -3.0]), Completion([4], [-10.0])]
    assert sampled_entropy(completions) == pytest.approx(4.0) and sampled_entropy([]) == 0
    probabilities = np.array([0.6, 0.3, 0.1])
    draws = np.random.default_rng(0).choice(3, size=20_000, p=probabilities)
    drawn = [Completion([int(token)], [float(np.log(probabilities[token]))]) for token in draws]
    assert sampled_entropy(drawn) == pytest.approx(-(probabilities * np.log(probabilities)).sum(), abs=0.02)


@pytest.mark.integration
@pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="no starter model (scripts/make_starter.py)")
def test_a_run_that_cannot_learn_ends_with_a_sentence(forks: Forks, tmp_path: Path) -> None:
    """Completions of twelve tokens are no programs, so all earn the same."""
    folder = tmp_path / "run"
    options = ["--model", "starter", "--no-vllm", "--steps", "9", "--prompts-per-step", "2", "--num-generations", "2"]
    options += ["--max-samples", "10", "--eval-problems", "2", "--stop-idle", "4", "--output-dir", str(folder)]
    done = forks.run("scripts/train.py", *options, "--max-completion-length", "12", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the run ends early: no row had an advantage for 4 steps" in done.stdout
    records = read_json_lines(folder / "metrics.jsonl")
    assert [record["rows_trained"] for record in records] == [0] * 4 and records[0]["entropy"] > 0
    summary = read_json(folder / "summary.json")
    assert "no row" in summary["stopped"] and summary["best"] == {"step": 4}


@pytest.mark.integration
@pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="no starter model (scripts/make_starter.py)")
def test_a_collapsed_run_stops_and_goes_back_to_its_best_checkpoint(forks: Forks, tmp_path: Path) -> None:
    """An entropy floor that no policy reaches makes any run look collapsed."""
    folder = tmp_path / "run"
    options = ["--model", "starter", "--no-vllm", "--steps", "9", "--prompts-per-step", "2", "--num-generations", "2"]
    options += ["--max-samples", "10", "--eval-problems", "2", "--stop-entropy", "50", "--output-dir", str(folder)]
    done = forks.run("scripts/train.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the policy has collapsed: the entropy was below 50 for 3 steps" in done.stdout
    summary = read_json(folder / "summary.json")
    assert summary["steps"] == PATIENCE and "entropy" in summary["stopped"] and summary["best"]["step"] == 0
    assert [record["step"] for record in read_json_lines(folder / "metrics.jsonl")] == [1, 2, 3]
    assert not read_checkpoint(folder).v.any() and not read_checkpoint(folder / "best").v.any()
    assert summary["after"]["pass_at_1"] == summary["before"]["pass_at_1"]
    (folder / "summary.json").unlink()  # as if it had been killed in its last evaluation
    resumed = forks.run("scripts/train.py", "--resume", "--output-dir", str(folder), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    again = read_json(folder / "summary.json")
    assert all(again[name] == summary[name] for name in ("steps", "stopped", "best")), again
    assert [record["step"] for record in read_json_lines(folder / "metrics.jsonl")] == [1, 2, 3]
    assert not read_checkpoint(folder).v.any()


@pytest.mark.parametrize(
    ("rates", "warned"),
    [
        ([0.05, 0.1, 0.1, 0.2, 0.3, 0.5, 0.5], True),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9], False),
        ([0.1, 0.1, 0.1, 0.1, 0.12, 0.11, 0.1], False),
        ([0.1, 0.9], False),
        ([0.1, None, 0.1, 0.1, 0.4, 0.4, 0.4], True),
    ],
)
def test_a_compile_rate_that_rises_from_nothing_is_told(rates: list[float | None], warned: bool) -> None:
    watch = JudgeWatch()
    for step, rate in enumerate(rates, 1):
        watch.check({"step": step, "compile_rate": rate})
    assert len(watch.warnings) == warned
    assert not warned or "learning the judge" in watch.warnings[0]
    resumed = JudgeWatch({"step": step, "compile_rate": rate} for step, rate in enumerate(rates, 1))
    assert resumed.warnings == watch.warnings
