"""The life of a training run: judge the base, train, judge what came of it, sum up.

What an evaluation between steps generated is graded while the next step runs: its verdicts are waited for when that
step ends, or the run.
"""

from __future__ import annotations

import platform
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters import load_checkpoint, read_checkpoint, save_checkpoint
from adapters.checkpoint import FILE_NAME
from pipeline.config import ConfigError, RunConfig
from pipeline.evaluation.compare import compare_counts
from pipeline.evaluation.evaluate import EVALUATION_SEED, Evaluating, fitting_problems
from pipeline.policy.loading import Policy
from pipeline.progress import EvaluationBar, TrainingBar
from pipeline.report.curves import draw_curves
from pipeline.rollout import Sampling
from pipeline.rollout.streaming import StreamingGrader
from pipeline.run_folder import RunFolder, read_json
from pipeline.scale.engine import grade_where_drawn
from pipeline.tasks import Task
from pipeline.tasks.problem_sets import UNDIVIDED, ProblemSets, clusters_of
from pipeline.training.calibration import calibrate
from pipeline.training.collapse import CollapseWatch, JudgeWatch
from pipeline.training.roles import trainer_of
from pipeline.training.timeline import Timeline
from pipeline.versions import provenance
from rewards.grader.pool import GraderPool
from storage.files import write_json

HELD_OUT, VALIDATION = "held-out", "validation"
LOGS = {HELD_OUT: "evaluations", VALIDATION: "validation"}  # the file of each set's evaluations


@dataclass
class PendingEvaluation:
    """An evaluation of the policy `v` after `step` steps, on the set called `name`, that is still being graded."""

    name: str
    step: int
    v: Tensor
    evaluating: Evaluating
    bar: EvaluationBar


class Run:
    """One run and all it works with. What its folder holds of a run to be continued is read here, once.

    task: resolved, the grader judges it. checkpoint: the step and the folder to continue from, None for a new run.
    canary: what it found, for the summary. started: when, by `time.perf_counter`. Raises `ConfigError` where no prompt
    of a set fits.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        problems: ProblemSets,
        pool: GraderPool | None,
        policy: Policy,
        folder: RunFolder,
        checkpoint: tuple[int, Path | None] | None,
        *,
        canary: dict[str, Any],
        started: float,
    ) -> None:
        self.config, self.task, self.policy, self.folder = config, task, policy, folder
        self.steps, self.resumed, self.canary, self.started = config.steps, checkpoint is not None, canary, started
        self.problems, self.dropped = fitting_sets(policy.tokenizer, problems, config, task)
        self.grader = grade_where_drawn(policy, StreamingGrader(pool, task))
        self.done, self.checkpoint = checkpoint or (0, None)
        self.metrics = folder.truncate("metrics", self.done)
        self.logs = {name: folder.truncate(file, self.done) for name, file in LOGS.items()}
        kept = folder.path / "best" / "best.json"
        self.best = read_json(kept) if kept.is_file() else None  # the step that `best/` is of
        self.counts: dict[int, dict[str, tuple[int, int]]] = {}  # of the held-out problems, by step
        self.watch = CollapseWatch(config.stop_kl, config.stop_entropy, self.metrics, idle_limit=config.stop_idle)
        self.judge_watch = JudgeWatch(self.metrics)
        self.timeline = Timeline(pool)
        self.folder.truncate("timeline", self.done)
        self.pending: PendingEvaluation | None = None  # between two steps
        self.stopped = self.watch.stopped  # already, where a run was killed after its last step
        self.terminated = Terminated()
        self.versions = provenance()

    def train(self) -> None:
        """From the first evaluation to the summary."""
        self.give_projections()
        self.baseline()
        step = self.learn()
        self.stop_if_terminated(step)
        self.finish(step)
        summary = self.summary(step)
        self.folder.write_json("summary.json", summary)
        draw_curves(self.metrics, summary, self.folder.path / "curves.png")
        print(_conclusion(summary, self.folder))

    # the phases

    def give_projections(self) -> None:
        """Principal projections: those in `best/`, which is written before the first step, or else new ones."""
        bank, best = self.policy.model.tinylora, self.folder.path / "best"
        if bank.config.projections != "principal":
            return
        if (best / FILE_NAME).is_file():
            kept = read_checkpoint(best).projections
            assert kept is not None
            bank.set_projections(kept)
            return
        report = calibrate(self.policy, self.problems.train, self.task, self.config)
        self.folder.write_json("calibration.json", report)
        print(
            f"projections: {self.config.u} principal directions of {report['completions']} completions of the base, "
            f"{report['variance_share']:.0%} of their variance, {report['seconds']} s",
            flush=True,
        )

    def baseline(self) -> None:
        """Judge the base before the first step, and watch it, where this was not done yet."""
        if self.evaluation(HELD_OUT, 0) is None:
            self.keep({"step": 0})
            self.log(HELD_OUT, self.judged_now(HELD_OUT, 0, "before"))
        if self.config.eval_every and self.stopped is None:
            if self.checkpoint:  # the evaluation of the last step may not have been graded when the run was killed
                load_checkpoint(self.checkpoint, self.policy.model)
            self.watch_validation(self.done)

    def learn(self) -> int:
        """Train until the steps are made, the policy collapses, or SIGTERM comes; returns the last step."""
        if self.stopped is not None and self.checkpoint:
            load_checkpoint(self.checkpoint, self.policy.model)
            return self.done
        problems, origin = self.problems.train, self.problems.origin
        trainer = trainer_of(self.policy)(
            self.policy, self.grader, problems, self.config, self.folder, self.on_step, origin, self.timeline
        )
        self.bar = TrainingBar("training", self.steps, "steps", self.done)
        self.timeline.begin()
        with self.terminated:
            trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        self.bar.close()
        self.watch_judged()
        return trainer.state.global_step

    def on_step(self, record: dict[str, Any]) -> bool:
        """Take the record of a step; tells whether the run ends with it."""
        self.metrics.append(record)
        self.folder.append("metrics", record)
        self.bar.step(record)
        self.stopped = self.watch.check(record)
        self.judge_watch.check(record)
        self.watch_judged()
        if self.config.eval_every and self.stopped is None:
            self.watch_validation(record["step"])
        saved = record["step"] % self.config.num_iterations == 0
        return self.stopped is not None or (self.terminated.requested and saved)

    def stop_if_terminated(self, step: int) -> None:
        """End the process where SIGTERM cut the run short."""
        if self.terminated.requested and self.stopped is None and step < self.steps:
            print(f"stopped by SIGTERM after step {step}; continue with: {self.folder.resume_command}", flush=True)
            raise SystemExit(143)

    def finish(self, step: int) -> None:
        """Settle which policy the run gives, save it, and judge it."""
        if self.stopped is not None and self.watch.collapsed:
            print(f"the policy has collapsed: {self.stopped}; going back to the best checkpoint", flush=True)
            load_checkpoint(self.folder.path / "best", self.policy.model)
        else:
            if self.stopped is not None:
                print(f"the run ends early: {self.stopped}", flush=True)
            if not self.config.eval_every:
                self.keep({"step": step})  # nothing was compared, so the last is as good as any
        save_checkpoint(self.folder.path, self.policy.model, self.config.model or "")
        judged = self.judged(step)
        if self.evaluation(HELD_OUT, judged) is None:
            self.policy.serve(judged)
            self.log(HELD_OUT, self.judged_now(HELD_OUT, judged, "after"))

    def summary(self, step: int) -> dict[str, Any]:
        """`summary.json`: the base against the policy of the run, and what the run was."""
        judged, names = self.judged(step), ("the base model", "the trained policy")
        before, after = (self.evaluation(HELD_OUT, at) for at in (0, judged))
        assert before is not None and after is not None
        first, last = (self.counts.get(at) or self.folder.counts(f"{HELD_OUT}-{at:05d}") for at in (0, judged))
        return {
            "before": _held_out(before),
            "after": _held_out(after),
            "comparison": compare_counts(names, first, last, [1], clusters_of(self.problems.held_out)),
            "split": self.config.eval_split,
            "engine": self.policy.engine.name,
            "model": self.config.model,
            "trainable_scalars": self.policy.model.tinylora.v.numel(),
            "steps": step,
            "best": self.best,
            "stopped": self.stopped,
            "canary": self.canary,
            "warnings": self.judge_watch.warnings,
            "dropped_prompts": self.dropped,
            "wall_seconds": round(time.perf_counter() - self.started, 1),
            "step_seconds": round(sum(record["seconds"]["step"] for record in self.metrics), 1),
            "resumed": self.resumed,
            "machine": platform.platform(),
            "versions": self.versions,
        }

    # evaluations

    def judged(self, step: int) -> int:
        """The step whose policy the run gives, and is judged by."""
        return self.best["step"] if self.watch.collapsed and self.best else step

    def evaluation(self, name: str, step: int) -> dict[str, Any] | None:
        """The evaluation of that step on the set called `name`, if there is one."""
        return next((record for record in self.logs[name] if record["step"] == step), None)

    def watch_validation(self, step: int) -> None:
        """Begin the evaluation that a run is watched by, where one is due after this step and there is none."""
        name = HELD_OUT if self.config.eval_split == UNDIVIDED else VALIDATION
        due = step % self.config.eval_every == 0 or step == self.steps
        if due and self.evaluation(name, step) is None:
            self.policy.serve(step)
            self.pending = self.judge(name, step, f"at step {step}")

    def watch_judged(self) -> None:
        """Wait for the evaluation that was begun, if there is one, and keep its policy if it is the best so far."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        record = self.record_of(pending)
        earlier = [one["pass@1"]["pass_at_1"] for one in self.logs[pending.name] if one["pass@1"]]
        if record["pass@1"] and record["pass@1"]["pass_at_1"] > max(earlier, default=-1.0):
            self.keep({"step": pending.step, **record["pass@1"]}, pending.v)
        self.log(pending.name, record)

    def judged_now(self, name: str, step: int, when: str) -> dict[str, Any]:
        return self.record_of(self.judge(name, step, when))

    def judge(self, name: str, step: int, when: str) -> PendingEvaluation:
        """Have the policy that the engine serves, after `step` steps, answer the problems of the set called `name`."""
        start = time.perf_counter()
        config, policy = self.config, self.policy
        problems = self.problems.held_out if name == HELD_OUT else self.problems.validation
        bar = EvaluationBar(len(problems), f"{name} {when}")
        sampling = Sampling(config.max_completion_length, config.eval_temperature, EVALUATION_SEED)
        evaluating = Evaluating(policy.engine, policy.tokenizer, self.grader, problems, 1, sampling, bar.graded)
        self.timeline.add("evaluate", start)
        return PendingEvaluation(name, step, policy.model.tinylora.v.detach().clone(), evaluating, bar)

    def record_of(self, pending: PendingEvaluation) -> dict[str, Any]:
        """Wait for its verdicts and write its rollouts; its line for the log."""
        name, step, config = pending.name, pending.step, self.config
        result = pending.evaluating.result()
        pending.bar.close()
        self.folder.write_rollouts(f"{name}-{step:05d}", result.rows(config))
        if name == HELD_OUT:
            ids = (problem.id for problem in self.problems.held_out)
            self.counts[step] = dict(zip(ids, result.counts(), strict=True))
        return {"step": step, **result.summary([1], config)}

    def log(self, name: str, record: dict[str, Any]) -> None:
        """An evaluation that is logged is not made again; so whatever follows from it is done before."""
        self.logs[name].append(record)
        self.folder.append(LOGS[name], record)

    def keep(self, about: dict[str, Any], v: Tensor | None = None) -> None:
        """Make the policy, or that of `v`, the one in `best/`; `best.json` says of which step it is and how it did on
        validation."""
        folder = self.folder.path / "best"
        folder.mkdir(exist_ok=True)
        save_checkpoint(folder, self.policy.model, self.config.model or "", v)
        write_json(folder / "best.json", about)
        self.best = about


def fitting_sets(tokenizer: Any, sets: ProblemSets, config: RunConfig, task: Task) -> tuple[ProblemSets, int]:
    """The problems whose prompts fit into `max_prompt_length`, and how many were dropped of those to train on and those
    held out."""
    limit = config.max_prompt_length
    every = (sets.train, sets.held_out, sets.validation)
    (train, lost), (held_out, lost_held_out), (validation, _) = (
        fitting_problems(tokenizer, problems, limit, task) for problems in every
    )
    if not train or not held_out or (config.eval_every and not validation):
        raise ConfigError(f"--max-prompt-length {limit}: every prompt of the training or a held-out set is longer")
    dropped = lost + lost_held_out
    text = f"; {dropped} dropped, longer than --max-prompt-length" if dropped else ""
    print(f"problems: {len(train)} to train on, {len(held_out)} held out{text}", flush=True)
    return replace(sets, train=train, held_out=held_out, validation=validation), dropped


class Terminated:
    """Within this context SIGTERM asks for a stop with the next checkpoint: that of the step under way, or of the last
    step on its batch (`num_iterations`). A second SIGTERM ends the process at once, and `--resume` goes on from the
    checkpoint before."""

    def __init__(self) -> None:
        self.requested = False

    def _handle(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print("\nSIGTERM: stopping with the next checkpoint", file=sys.stderr, flush=True)

    def __enter__(self) -> Terminated:
        self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)


def _held_out(record: dict[str, Any]) -> dict[str, Any]:
    known = record["pass@1"] or {"pass_at_1": None, "n": 0, "low": None, "high": None}  # None without a verdict
    return {**known, "compile_rate": record["compile_rate"], "mean_reward": record["mean_reward"]}


def _conclusion(summary: dict[str, Any], folder: RunFolder) -> str:
    before, after = (
        "unknown" if side["pass_at_1"] is None else f"{side['pass_at_1']:.3f} [{side['low']:.3f}, {side['high']:.3f}]"
        for side in (summary["before"], summary["after"])
    )
    return (
        f"held-out pass@1 ({summary['split']} problems): {before} before, {after} after; "
        f"{summary['after']['n']} completions each\n"
        f"{summary['comparison']['conclusion']}\n"
        f"trained {summary['trainable_scalars']} numbers in {summary['wall_seconds'] / 60:.1f} minutes; "
        f"see {folder.path}/summary.json and {folder.path}/curves.png"
    )
