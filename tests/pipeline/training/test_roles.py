"""Two replicas, each with a model of its own, make the steps that one makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.rollout.rollouts import Rollouts
from pipeline.scale.engine import FleetEngine, grade_where_drawn
from pipeline.scale.fleet import Fleet
from pipeline.training.replica import TrainingReplica
from rewards.problem import Problem
from tests.pipeline.scale.stand_in import Died, ThreadLauncher, versions
from tests.pipeline.training.tiny_trainer import tiny_trainer

# One for each group of a run: whose gradient a prompt's is that two groups have follows from the order of rows, and
# replicas that are threads shuffle one another's random numbers.
PROBLEMS = [Problem(name, f"{name}?" * (1 + n % 5), answer="1") for n, name in enumerate("abcdefghijklmno")]
STEPS = 3
SIZES: dict[str, Any] = {"prompts_per_step": 5, "num_generations": 4, "steps": STEPS}
SIZES |= {"loss_type": "dapo", "scale_rewards": "group"}  # with which these few groups show a signal
KINDS: list[dict[str, Any]] = [{"beta": 0.1}, {"staleness": 1}, {"staleness": 1, "scale_rewards": "batch"}]


def early_letters(completion: str) -> float:
    """A reward that all groups pull towards, so that steps are made."""
    return sum(letter < "m" for letter in completion)


class TinyReplica(TrainingReplica):
    """With a trainer that is there already: making one seeds the random numbers of the whole process."""

    def __init__(self, number: int, driver: Any, trainer: Any) -> None:
        super().__init__(number)
        self.policy, self.task, self.pool, self.trainer = driver.sampler.policy, driver.scoring.task, None, trainer

    def load(self, *_: Any) -> dict[str, Any]:
        about = {"seconds": 0.0, "versions": versions(), "tier": "none", "seats": 8}
        return self.about() | about | {"fingerprint": self.policy.model.tinylora.base_fingerprint}


def run_of(model_folder: Path, run: Path, replicas: int, moment: Any = lambda *_: None, **settings: Any) -> Any:
    """The records of a run, its batches, and v at its end."""
    from pipeline.training.roles import DriverTrainer, ReplicaTrainer

    def tiny(name: str) -> Any:
        return tiny_trainer(model_folder, run / name, reward=early_letters, problems=PROBLEMS, **SIZES | settings)

    lone, others = tiny("driver"), [tiny(f"replica-{number}") for number in range(1, replicas)]
    ready = [(one, ReplicaTrainer(one.sampler.policy, one.run_config, one.folder.path)) for one in others]
    records: list[dict[str, Any]] = []
    batches: list[Rollouts] = []
    launcher = ThreadLauncher(replicas, moment, made=lambda number: TinyReplica(number, *ready[number - 1]))
    policy = lone.sampler.policy
    with Fleet(launcher, lone.run_config, lambda text: None) as fleet:
        policy.engine = FleetEngine(policy, fleet, seats=8)
        grader = grade_where_drawn(policy, lone.grader)
        trainer = DriverTrainer(policy, grader, PROBLEMS, lone.run_config, lone.folder, records.append)
        roll_out = trainer.roll_out

        def watched(problems: list[int]) -> Rollouts:
            batches.append(roll_out(problems))
            return batches[-1]

        trainer.roll_out = watched  # type: ignore[method-assign]
        trainer.train()
    return records, batches, trainer.bank.v.detach().numpy().copy()


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: "-".join(map(str, s.values())))
def test_two_replicas_make_the_steps_of_one(
    tiny_model_folder: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training import roles

    monkeypatch.setattr(roles, "KL_ROWS", 8)  # so that log-probabilities are shared out
    one, batches, v = run_of(tiny_model_folder, tmp_path / "one", 1, **settings)
    two, same_batches, same_v = run_of(tiny_model_folder, tmp_path / "two", 2, **settings)
    assert [batch.texts for batch in batches] == [batch.texts for batch in same_batches]
    assert np.linalg.norm(v - same_v) <= 1e-4 * np.linalg.norm(v)
    for record, other in zip(one, two, strict=True):
        assert all(lane["tokens"] or record["step"] == STEPS for lane in other["replicas"])
        assert len(other["replicas"]) == 2 and all("train" in lane["seconds"] for lane in other["replicas"])
        for name in ("reward", "loss", "rows_trained", "step_signal", "step_kl_predicted", "step_kl", "kl_base"):
            assert (name in record) == (name in other)
            assert name not in record or other[name] == pytest.approx(record[name], rel=1e-2, abs=1e-6), name
    assert sum("step_kl" in record for record in one) >= 2


def test_a_replica_that_dies_while_it_trains_changes_no_step(tiny_model_folder: Path, tmp_path: Path) -> None:
    def dies(number: int, life: int, name: str) -> None:
        if name == "gradient" and life == 1:
            raise Died("killed")

    _, _, v = run_of(tiny_model_folder, tmp_path / "one", 1)
    _, _, same_v = run_of(tiny_model_folder, tmp_path / "two", 2, dies)
    assert np.linalg.norm(v - same_v) <= 1e-4 * np.linalg.norm(v)
