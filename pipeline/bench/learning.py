"""The measurements behind `python scripts/bench.py learning`: what runs gained over their base.

`scripts/train.py` makes the runs. Here the base and every run are judged on the same problems, prompts and seeds, by
one loaded model where adapters have the same shape: on several data sets, sampled at temperature 1 and greedily. Gains
are paired by problem (`pipeline/evaluation/compare.py`). How long a run took, and how far its engine was from its
trainer, its own records tell.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import adapters
from pipeline.bench.form import Row, row
from pipeline.config import ConfigError, RunConfig, Settings
from pipeline.evaluation.choose import check_base, checkpoint_settings
from pipeline.evaluation.compare import compare_counts
from pipeline.evaluation.evaluate import EVALUATION_SEED, Evaluation, evaluate, evaluated_problems
from pipeline.evaluation.run import Loaded, policy_of
from pipeline.launch import prepare
from pipeline.policy.loading import Policy
from pipeline.policy.models import made_ready
from pipeline.rollout import Sampling
from pipeline.rollout.streaming import StreamingGrader
from pipeline.run_folder import read_json, read_json_lines
from pipeline.tasks import task_of
from pipeline.tasks.canary import Canary
from pipeline.tasks.graders import start_graders
from pipeline.tasks.problem_sets import clusters_of, held_out_problems
from rewards.problem import Problem
from storage.files import write_json_lines

BASE = "base"


@dataclass(frozen=True, slots=True)
class Trial:
    """A data set at a temperature, with `samples` completions of each problem."""

    name: str
    problems: Sequence[Problem]
    temperature: float
    samples: int

    @property
    def label(self) -> str:
        how = f"temperature {self.temperature:g}, {self.samples} each" if self.temperature else "greedy"
        return f"{self.name}, {len(self.problems)} problems, {how}"

    @property
    def ks(self) -> tuple[int, ...]:
        return (1, self.samples) if self.samples > 1 else (1,)


def check_runs(runs: Sequence[Path], **told: Any) -> Settings:
    """The settings under which all runs are judged: those of the first, with what is told.

    Raises `ConfigError` or `AdapterError`, before anything heavy is imported, for what is no run, two of one name, and
    another base.
    """
    for run in runs:
        if not run.is_dir():
            raise ConfigError(f"{run}: no such folder; give the folders of runs, or a checkpoint-N in one")
        adapters.read_checkpoint(run)
    if len(set(names := names_of(runs))) < len(runs):
        raise ConfigError(f"two of the runs are called alike ({', '.join(names)}); rename a folder")
    options = {name: value for name, value in told.items() if value is not None}
    settings = replace(checkpoint_settings(runs[0]), **options)
    choice, config = prepare(settings)
    for run in runs:
        check_base(run, checkpoint_settings(run), choice, config.quant)
    return settings


def names_of(runs: Sequence[Path]) -> list[str]:
    """Of a run's folder its own, of one in a run both."""
    places = [run.resolve() for run in runs]
    inside = [place.name == "best" or place.name.startswith("checkpoint-") for place in places]
    return [f"{p.parent.name}-{p.name}" if within else p.name for p, within in zip(places, inside, strict=True)]


def measure(
    settings: Settings, runs: Sequence[Path], data_sets: Sequence[str | None], samples: int, folder: Path
) -> list[Row]:
    """Rows of the base and every run, data set by data set (None: the first run's); completions go into `folder`."""
    choice, config = prepare(settings)
    sets = {name: held_out_problems(replace(config, eval_dataset=name or config.eval_dataset)) for name in data_sets}
    choice = made_ready(choice)
    trials: list[Trial] = []
    found: dict[str, list[Evaluation]] = {}
    loaded: Loaded | None = None
    with start_graders(config) as pool:
        grader = StreamingGrader(pool, task_of(config))
        canary = Canary(pool, grader.task, [problem for problems in sets.values() for problem in problems])
        for name, run in zip((BASE, *names_of(runs)), (None, *runs), strict=True):
            loaded = policy_of(run, choice, config, loaded)
            if not trials:
                canary.check(config.canary)
                trials = list(_trials(sets, samples, loaded.policy, grader, config))
            found[name] = [_judged(trial, name, loaded.policy, grader, config, folder) for trial in trials]
        assert loaded is not None
        loaded.close()
    rows: list[Row] = []
    for index, trial in enumerate(trials):
        rows += trial_rows(trial, {name: evaluations[index] for name, evaluations in found.items()}, config)
    for name, run in zip(names_of(runs), runs, strict=True):
        rows += run_rows(name, run if (run / "metrics.jsonl").is_file() else run.parent)
    return rows


def _trials(
    sets: Mapping[str | None, Sequence[Problem]],
    samples: int,
    policy: Policy,
    grader: StreamingGrader,
    config: RunConfig,
) -> Iterator[Trial]:
    for name, problems in sets.items():
        kept, _ = evaluated_problems(policy.tokenizer, problems, config.max_prompt_length, grader.task)
        label = "held-out" if name is None else Path(name.partition(":")[2] or name).stem
        yield Trial(label, kept, 1.0, samples)
        yield Trial(label, kept, 0.0, 1)


def _judged(
    trial: Trial, name: str, policy: Policy, grader: StreamingGrader, config: RunConfig, folder: Path
) -> Evaluation:
    sampling = Sampling(config.max_completion_length, trial.temperature, EVALUATION_SEED)
    judged = evaluate(policy.engine, policy.tokenizer, grader, trial.problems, trial.samples, sampling)
    print(f"judged {name} on {trial.label}", flush=True)
    kind = "sampled" if trial.temperature else "greedy"
    write_json_lines(folder / f"{name}-{trial.name}-{kind}.jsonl", judged.rows(config))
    return judged


def trial_rows(trial: Trial, found: Mapping[str, Evaluation], config: RunConfig) -> Iterator[Row]:
    """pass@k of every policy beside the base's, with the paired difference; compile rate and length."""
    summaries = {name: evaluation.summary(trial.ks, config) for name, evaluation in found.items()}
    counts = {
        name: dict(zip([problem.id for problem in trial.problems], evaluation.counts(), strict=True))
        for name, evaluation in found.items()
    }
    for name, summary in summaries.items():
        base = None if name == BASE else summaries[BASE]
        sides = counts[BASE], counts[name]
        compared = base and compare_counts((BASE, name), *sides, trial.ks, clusters_of(trial.problems))
        for k in trial.ks:
            if (known := summary[f"pass@{k}"]) is None:
                yield row(f"{trial.label}: {name}, problems with {k} graded, so no pass@{k}", 0, "problems")
                continue
            text = f"{trial.label}: {name}, pass@{k}"
            if compared and (c := compared[f"pass@{k}"]):
                text += f", {c['difference']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}], p = {c['p_value']:.2g}"
            before = base and base[f"pass@{k}"]
            baseline = before[f"pass_at_{k}"] or None if before else None
            yield row(text, known[f"pass_at_{k}"], f"pass@{k}", baseline=baseline)
        for unit, key in (("compile rate", "compile_rate"), ("tokens a completion", "mean_tokens")):
            before = base[key] if base else None
            yield row(f"{trial.label}: {name}, {unit}", summary[key], unit, baseline=before or None)


def run_rows(name: str, folder: Path) -> Iterator[Row]:
    """What the run's records tell of its time, its steps and the mismatch of its engine; nothing without steps."""
    if not (metrics := read_json_lines(folder / "metrics.jsonl")):
        return
    seconds = [record["seconds"]["step"] for record in metrics]
    yield row(f"{name}: steps", len(metrics), "steps")
    yield row(f"{name}: a step, median", statistics.median(seconds), "s")
    if (folder / "summary.json").is_file():
        wall = read_json(folder / "summary.json")["wall_seconds"]
        yield row(f"{name}: the whole run, start and evaluations included", wall / 60, "minutes")
    for key, text, last, unit in (
        ("mismatch", "mismatch of engine and trainer, mean of all steps", len(metrics), "k3 a token"),
        ("kl_base", "KL to the base, mean of the last ten steps", 10, "k3 a token"),
        ("entropy", "entropy, mean of the last ten steps", 10, "nats a token"),
    ):
        if known := [record[key] for record in metrics[-last:] if record.get(key) is not None]:
            yield row(f"{name}: {text}", statistics.mean(known), unit)
