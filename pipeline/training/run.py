"""A training run from its settings to its summary."""

from __future__ import annotations

import platform
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError, RunConfig, Settings, load_config
from pipeline.launch import prepare
from pipeline.policy.loading import Policy, load_policy
from pipeline.policy.models import made_ready
from pipeline.report.trackers import prepare_tracker
from pipeline.run_folder import RunFolder, read_json, read_json_lines
from pipeline.tasks import task_of
from pipeline.tasks.canary import Canary
from pipeline.tasks.graders import start_graders
from pipeline.tasks.problem_sets import UNDIVIDED, ProblemSets, clusters_of, load_problem_sets
from pipeline.versions import describe_versions
from rewards.problem import Problem
from storage.files import write_json

LOGS = {"held-out": "evaluations", "validation": "validation"}  # the file of each set's evaluations
CHANGEABLE: tuple[str, ...] = ("steps", "eval_every", "report_to", "grader_workers", "output_dir", "unsafe_grader")
CHANGEABLE += ("stop_kl", "stop_entropy", "stop_idle", "header_store", "canary")


def train(settings: Settings, *, resume: bool = False) -> Path:
    """Run or continue a training run; returns its folder."""
    start = time.perf_counter()
    choice, config = prepare(settings)
    print(f"model: {choice.name} ({choice.reason})", flush=True)
    sets = load_problem_sets(config)  # first: a data set may come from the hub, which a local model keeps offline
    choice = made_ready(choice)
    with start_graders(config) as pool:
        if resume:
            folder = RunFolder(Path(config.output_dir or ""))
        else:
            folder = RunFolder.create(config.output_dir, f"{Path(choice.name).name}-u{config.u}")
        config = replace(config, output_dir=str(folder.path))
        config.save(folder.path / "config.yaml")
        prepare_tracker(config.report_to, folder.path)  # before TRL is imported, which imports the trackers
        grader_report = pool.describe()
        folder.write_json("grader.json", grader_report)
        engine = "vllm" if config.vllm else "transformers"
        print(f"run: {folder.path} (engine {engine}, grader tier {grader_report['tier']})", flush=True)
        canary = Canary(pool, task_of(config), [*sets.train, *sets.held_out])  # graded while the model is loaded
        policy = load_policy(choice, config)
        try:
            checked = canary.check(config.canary)
            _run(config, policy, pool, folder, sets, resume, start, checked)
        except KeyboardInterrupt:
            print(f"\ninterrupted; continue with: {_resume_command(folder)}")
            raise
        finally:
            policy.close()
    return folder.path


def stored_config(folder: RunFolder, overrides: dict[str, Any]) -> Settings:
    """The settings of a run to be resumed. Only how long and how it is watched may change."""
    stored = load_config(folder.path / "config.yaml")
    for name, value in overrides.items():
        changeable = name in CHANGEABLE
        if not changeable and value != getattr(stored, name):
            raise ConfigError(
                f"--resume: --{name.replace('_', '-')} {value} differs from the run's {getattr(stored, name)}; "
                f"leave it out, or start a new run"
            )
    return replace(stored, **overrides | {"output_dir": str(folder.path)})


def _run(
    config: RunConfig,
    policy: Policy,
    pool: Any,
    folder: RunFolder,
    sets: ProblemSets,
    resume: bool,
    start: float,
    canary: dict[str, Any],
) -> None:
    from adapters import load_checkpoint, save_checkpoint
    from pipeline.evaluation.compare import compare_counts
    from pipeline.evaluation.evaluate import fitting_problems
    from pipeline.progress import TrainingBar
    from pipeline.report.curves import draw_curves
    from pipeline.rollout.streaming import StreamingGrader
    from pipeline.training.collapse import CollapseWatch, JudgeWatch
    from pipeline.training.trainer import TinyLoRATrainer

    task, limit = task_of(config), config.max_prompt_length
    train_problems, dropped = fitting_problems(policy.tokenizer, sets.train, limit, task)
    held_out, dropped_held_out = fitting_problems(policy.tokenizer, sets.held_out, limit, task)
    validation, _ = fitting_problems(policy.tokenizer, sets.validation, limit, task)
    if not train_problems or not held_out or (config.eval_every and not validation):
        raise ConfigError(f"--max-prompt-length {limit}: every prompt of the training or a held-out set is longer")
    print(
        f"problems: {len(train_problems)} to train on, {len(held_out)} held out"
        + (
            f"; {dropped + dropped_held_out} dropped, longer than --max-prompt-length"
            if dropped + dropped_held_out
            else ""
        ),
        flush=True,
    )
    grader = StreamingGrader(pool, task)
    done, checkpoint = folder.whole_checkpoint() if resume else (0, None)
    for name in ("metrics", *LOGS.values()):
        folder.truncate(name, done)
    _give_projections(config, policy, train_problems, folder)
    before = next((r for r in read_json_lines(folder.path / "evaluations.jsonl") if r["step"] == 0), None)
    if before is None:
        _keep(policy, config, folder, {"step": 0})
        before = _evaluate(config, policy, grader, held_out, folder, 0, "held-out", "before")
        folder.append("evaluations", before)

    def watch_validation(step: int) -> None:
        """Evaluate what a run is watched by, and keep the policy if it is the best so far."""
        name = "held-out" if config.eval_split == UNDIVIDED else "validation"
        earlier = read_json_lines(folder.path / f"{LOGS[name]}.jsonl")
        if any(record["step"] == step for record in earlier):
            return
        policy.engine.refresh(policy.model.tinylora.v)
        record = _evaluate(config, policy, grader, validation, folder, step, name, f"at step {step}")
        if record["pass@1"]["pass_at_1"] > max((r["pass@1"]["pass_at_1"] for r in earlier), default=-1.0):
            _keep(policy, config, folder, {"step": step, **record["pass@1"]})
        folder.append(LOGS[name], record)

    if config.eval_every and not done:
        watch_validation(0)
    bar = TrainingBar(config.steps, done)
    earlier = read_json_lines(folder.path / "metrics.jsonl")
    watch = CollapseWatch(config.stop_kl, config.stop_entropy, earlier, idle_limit=config.stop_idle)
    judge_watch = JudgeWatch(earlier)
    stopped: str | None = None

    def on_step(record: dict[str, Any]) -> bool:
        nonlocal stopped
        folder.append("metrics", record)
        bar.step(record)
        step = record["step"]
        stopped = watch.check(record)
        judge_watch.check(record)
        if config.eval_every and stopped is None and (step % config.eval_every == 0 or step == config.steps):
            watch_validation(step)
        return stopped is not None or terminated.requested

    trainer = TinyLoRATrainer(policy, grader, train_problems, config, folder, on_step, sets.origin)
    with Terminated() as terminated:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    bar.close()
    step = trainer.state.global_step
    if terminated.requested and stopped is None and step < config.steps:
        print(f"stopped by SIGTERM after step {step}; continue with: {_resume_command(folder)}", flush=True)
        raise SystemExit(143)
    if stopped is not None and not watch.collapsed:
        print(f"the run ends early: {stopped}", flush=True)
    elif stopped is not None:
        print(f"the policy has collapsed: {stopped}; going back to the best checkpoint", flush=True)
        load_checkpoint(folder.path / "best", policy.model)
    elif not config.eval_every:
        _keep(policy, config, folder, {"step": step})  # nothing was compared, so the last is as good as any
    save_checkpoint(folder.path, policy.model, config.model or "")
    best = read_json(folder.path / "best" / "best.json")
    judged = best["step"] if watch.collapsed else step
    after = next((r for r in read_json_lines(folder.path / "evaluations.jsonl") if r["step"] == judged), None)
    if after is None:
        policy.engine.refresh(policy.model.tinylora.v)
        after = _evaluate(config, policy, grader, held_out, folder, judged, "held-out", "after")
        folder.append("evaluations", after)
    first, last = (folder.counts(f"held-out-{at:05d}") for at in (0, judged))
    names = ("the base model", "the trained policy")
    summary = {
        "before": _held_out(before),
        "after": _held_out(after),
        "comparison": compare_counts(names, first, last, [1], clusters_of(held_out)),
        "split": config.eval_split,
        "engine": policy.engine.name,
        "model": config.model,
        "trainable_scalars": policy.model.tinylora.v.numel(),
        "steps": step,
        "best": best,
        "stopped": stopped,
        "canary": canary,
        "warnings": judge_watch.warnings,
        "dropped_prompts": dropped + dropped_held_out,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "step_seconds": round(sum(r["seconds"]["step"] for r in read_json_lines(folder.path / "metrics.jsonl")), 1),
        "resumed": resume,
        "machine": platform.platform(),
        "versions": describe_versions(),
    }
    folder.write_json("summary.json", summary)
    draw_curves(read_json_lines(folder.path / "metrics.jsonl"), summary, folder.path / "curves.png")
    print(_conclusion(summary, folder.path))


def _give_projections(config: RunConfig, policy: Policy, problems: list[Problem], folder: RunFolder) -> None:
    """Principal projections: those in `best/`, which is written before the first step, or else new ones."""
    from adapters import read_checkpoint
    from adapters.checkpoint import FILE_NAME
    from pipeline.training.calibration import calibrate

    bank = policy.model.tinylora
    if bank.config.projections != "principal":
        return
    if (folder.path / "best" / FILE_NAME).is_file():
        kept = read_checkpoint(folder.path / "best").projections
        assert kept is not None
        bank.set_projections(kept)
        return
    report = calibrate(policy, problems, task_of(config), config)
    folder.write_json("calibration.json", report)
    print(
        f"projections: {config.u} principal directions of {report['completions']} completions of the base, "
        f"{report['variance_share']:.0%} of their variance, {report['seconds']} s",
        flush=True,
    )


def _evaluate(
    config: RunConfig,
    policy: Policy,
    grader: Any,
    problems: list[Problem],
    folder: RunFolder,
    step: int,
    name: str,
    when: str,
) -> dict[str, Any]:
    """Evaluate the engine's current policy on the problems of the set called `name`; its line in the set's log."""
    from pipeline.evaluation.evaluate import EVALUATION_SEED, evaluate
    from pipeline.progress import EvaluationBar
    from pipeline.rollout import Sampling

    bar = EvaluationBar(len(problems), f"{name} {when}")
    sampling = Sampling(config.max_completion_length, config.eval_temperature, EVALUATION_SEED)
    result = evaluate(policy.engine, policy.tokenizer, grader, problems, 1, sampling, bar.graded)
    bar.close()
    record = {"step": step, **result.summary([1], config)}
    folder.write_rollouts(f"{name}-{step:05d}", result.rows(config))
    return record


def _keep(policy: Policy, config: RunConfig, folder: RunFolder, about: dict[str, Any]) -> None:
    """Make the policy the one in `best/`; `best.json` says of which step it is and how well it did on validation."""
    from adapters import save_checkpoint

    best = folder.path / "best"
    best.mkdir(exist_ok=True)
    save_checkpoint(best, policy.model, config.model or "")
    write_json(best / "best.json", about)


class Terminated:
    """Within this context SIGTERM asks for a stop after the step at hand, whose checkpoint is written; a second SIGTERM
    ends the process at once, and `--resume` goes on from the step before."""

    def __init__(self) -> None:
        self.requested = False

    def _handle(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print("\nSIGTERM: stopping after this step", file=sys.stderr, flush=True)

    def __enter__(self) -> Terminated:
        self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)


def _resume_command(folder: RunFolder) -> str:
    return f"python scripts/train.py --resume --output-dir {folder.path}"


def _held_out(record: dict[str, Any]) -> dict[str, Any]:
    return {**record["pass@1"], "compile_rate": record["compile_rate"], "mean_reward": record["mean_reward"]}


def _conclusion(summary: dict[str, Any], path: Path) -> str:
    before, after = summary["before"], summary["after"]
    return (
        f"held-out pass@1 ({summary['split']} problems): {before['pass_at_1']:.3f} [{before['low']:.3f}, "
        f"{before['high']:.3f}] before, {after['pass_at_1']:.3f} [{after['low']:.3f}, {after['high']:.3f}] after; "
        f"{after['n']} completions each\n"
        f"{summary['comparison']['conclusion']}\n"
        f"trained {summary['trainable_scalars']} numbers in {summary['wall_seconds'] / 60:.1f} minutes; "
        f"see {path}/summary.json and {path}/curves.png"
    )
