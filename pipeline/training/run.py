"""A training run from its settings to its folder: everything that must be there before the run itself begins."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError, Settings, load_config, parse_scales
from pipeline.launch import described, prepare
from pipeline.policy.loading import load_policy
from pipeline.policy.models import made_ready
from pipeline.report.trackers import prepare_tracker
from pipeline.run_folder import RunFolder
from pipeline.tasks import task_of
from pipeline.tasks.canary import Canary
from pipeline.tasks.graders import start_graders
from pipeline.tasks.problem_sets import check_scales, load_problem_sets

__all__ = ["described", "stored_config", "train"]

CHANGEABLE: tuple[str, ...] = ("steps", "eval_every", "report_to", "grader_workers", "output_dir", "unsafe_grader")
CHANGEABLE += ("stop_kl", "stop_entropy", "stop_idle", "header_store", "canary", "engine_weights")
CHANGEABLE += ("replicas", "ray_address", "grader_nodes")


def train(settings: Settings, *, resume: bool = False) -> Path:
    """Run or continue a training run; returns its folder."""
    from pipeline.scale.start import fleet_of, launching, lead, sharing_of  # with torch, after the settings' checks
    from pipeline.training.replica import TrainingReplica

    start = time.perf_counter()
    choice, config = prepare(settings)
    print(f"model: {choice.name} ({choice.reason})", flush=True)
    sets = load_problem_sets(config)  # first: a data set may come from the hub, which a local model keeps offline
    check_scales(parse_scales(config.advantage_scale), sets.train)
    choice = made_ready(choice)
    with (
        launching(config, TrainingReplica) as launcher,
        start_graders(config, sharing_of(launcher)) as pool,
        fleet_of(launcher, config) as fleet,
    ):
        if resume:
            folder = RunFolder(Path(config.output_dir or ""))
            checkpoint = folder.whole_checkpoint(config)
        else:
            folder = RunFolder.create(config.output_dir, f"{Path(choice.name).name}-u{config.u}")
            checkpoint = None
        config = replace(config, output_dir=str(folder.path))
        config.save(folder.path / "config.yaml")
        prepare_tracker(config.report_to, folder.path)  # before TRL is imported, which imports the trackers
        grader_report = pool.describe()
        folder.write_json("grader.json", grader_report)
        engine = "vllm" if config.vllm else "transformers"
        print(f"run: {folder.path} (engine {engine}, grader tier {grader_report['tier']})", flush=True)
        task = task_of(config)
        canary = Canary(pool, task, [*sets.train, *sets.held_out])  # graded while the model is loaded
        policy = load_policy(choice, config)
        lead(policy, fleet, config)
        try:
            from pipeline.training.lifecycle import Run  # with TRL, which must come after Unsloth

            checked = canary.check(config.canary)
            Run(config, task, sets, pool, policy, folder, checkpoint, canary=checked, started=start).train()
        except KeyboardInterrupt:
            print(f"\ninterrupted; continue with: {folder.resume_command}")
            raise
        finally:
            policy.close()
    return folder.path


def stored_config(folder: RunFolder, overrides: dict[str, Any]) -> Settings:
    """The settings of a run to be resumed. Only how long and how it is watched may change."""
    stored = load_config(folder.path / "config.yaml")
    for name, value in overrides.items():
        told = replace(stored, **{name: value})
        same = told == stored or (name == "lr" and told.learning_rate == stored.learning_rate)
        if name not in CHANGEABLE and not same:
            raise ConfigError(
                f"--resume: --{name.replace('_', '-')} {value} differs from the run's {getattr(stored, name)}; "
                f"leave it out, or start a new run"
            )
    return replace(stored, **overrides | {"output_dir": str(folder.path)})
