"""What a report shows of a run, read from its folder: curves with intervals, evaluations, rollouts, problems, settings.

Only reads. A run that is still going, was killed, or was trained elsewhere gives what it has; what is missing is said.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import STARTER, ConfigError, load_config, resolved
from pipeline.run_folder import PHASES, read_json, read_json_lines
from pipeline.tasks import task_of
from pipeline.tasks.problem_sets import load_problem_sets
from rewards.problem import Problem
from storage.errors import UserError

CURVES = (
    "reward",
    "pass_rate",
    "compile_rate",
    "kl_base",
    "mismatch",
    "kept_share",
    "entropy",
    "grad_norm",
    "v_norm",
    "delta_norm",
    "mean_length",
    "truncated",
    "zero_variance_groups",
    "grading_hidden",
    "tokens_per_second",
    "off_policy",
    "ratios_cut",
)
IDLE = ("device", "graders")
DRAWN_STEPS = 6  # of the time line, the last ones
SHOWN_TESTS = 4  # of a problem
SHOWN_CHARACTERS = 400  # of a test's input or output
FIELDS = ("step", "problem", "sample", "completion", "verdict", "passed", "total", "tests", "message")  # of a rollout
SHOWN_MESSAGES = 12
PLACE = re.compile(r"^(?:main\.\w+:|/\S+?:)[\d:]*\s*|(?<= on test )\d+")  # of a message: file, line, column, test
METRICS = {"step": int, "seconds": dict | None, "idle": dict | None, "verdicts": dict | None, "replicas": list | None}
TIMELINE = {"step": int, "start": int | float, "end": int | float, "lanes": dict}
EVALUATION = {"step": int, "pass@1": dict | None}
ROLLOUT = {"problem": str, "verdict": str, "message": str | None}
SCORES = ("reward", "advantage", "tokens")


def run_data(folder: Path, limit: int) -> dict[str, Any]:
    """Everything the page needs of one run, JSON-ready; at most `limit` rollouts, spread evenly over the files.

    Raises `ConfigError` for a folder that holds no run.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} contains no run (no config.yaml)")
    metrics = read_json_lines(folder / "metrics.jsonl", **METRICS)
    summary = read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    every = _rollouts(folder / "rollouts")
    rollouts = every if len(every) <= limit else [every[index * len(every) // limit] for index in range(limit)]
    problems, note = _problems(folder, {row["problem"] for row in rollouts})
    return {
        "name": folder.resolve().name,
        "config": yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
        "summary": _finite(summary),
        "grader": read_json(folder / "grader.json") if (folder / "grader.json").is_file() else {},
        "steps": [record["step"] for record in metrics],
        "curves": {name: _finite([record.get(name) for record in metrics]) for name in CURVES},
        "seconds": {name: _finite([record.get("seconds", {}).get(name) for record in metrics]) for name in PHASES},
        "step_seconds": _finite([record.get("seconds", {}).get("step") for record in metrics]),
        "lanes": _lanes(metrics),
        "idle": {name: _finite([record.get("idle", {}).get(name) for record in metrics]) for name in IDLE},
        "timeline": _timeline(read_json_lines(folder / "timeline.jsonl", **TIMELINE)),
        "verdicts": _verdicts(metrics),
        "messages": _messages(every),
        "v": _finite([record.get("v", []) for record in metrics]),
        "intervals": _step_intervals(every),
        "evaluations": _evaluations(folder / "evaluations.jsonl"),
        "validation": _evaluations(folder / "validation.jsonl"),
        "rollouts": {name: [row.get(name) for row in rollouts] for name in ("set", *FIELDS, *SCORES)},
        "left_out": len(every) - len(rollouts),
        "problems": problems,
        "note": note,
    }


def _finite(value: Any) -> Any:
    """The value with every number that JSON cannot hold replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def _evaluations(path: Path) -> list[dict[str, Any]]:
    """Those of a file that have a verdict."""
    return [_evaluation(record) for record in read_json_lines(path, **EVALUATION) if record["pass@1"]]


def _evaluation(record: Mapping[str, Any]) -> dict[str, Any]:
    one = record["pass@1"]
    return {
        "step": record["step"],
        "value": one["pass_at_1"],
        "low": one["low"],
        "high": one["high"],
        "n": one["n"],
        "verdicts": record.get("verdicts", {}),
    }


def _lanes(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each replica of a run with several: its name, and by step its tokens and the seconds of its phases, None
    where it was not there."""
    steps = [{lane["replica"]: lane for lane in record.get("replicas", [])} for record in metrics]
    numbers = sorted({number for step in steps for number in step})
    phases = sorted({phase for step in steps for lane in step.values() for phase in lane["seconds"]})
    found = []
    for number in numbers:
        lanes = [step.get(number) for step in steps]
        place = next((f" on {lane['node']}" for lane in lanes if lane and lane.get("node")), "")
        seconds = {phase: [lane["seconds"].get(phase) if lane else None for lane in lanes] for phase in phases}
        tokens = [lane["tokens"] if lane else None for lane in lanes]
        found.append({"name": f"replica {number}{place}", "tokens": tokens, "seconds": seconds})
    return found


def _timeline(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last steps: (step, end) of each and, by lane, (begin, end) of what ran, in seconds from the first of them."""
    lines = lines[-DRAWN_STEPS:]
    lanes: dict[str, list[list[float]]] = {}
    for line in lines:
        for name, spans in line["lanes"].items():
            lanes.setdefault(name, []).extend([at - lines[0]["start"] for at in span] for span in spans)
    return {"steps": [[line["step"], line["end"] - lines[0]["start"]] for line in lines], "lanes": lanes}


def _verdicts(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[int | None]]:
    """Counts of each verdict by step, None where a step made no rollouts."""
    names = sorted({name for record in metrics for name in record.get("verdicts", {})})
    counts = [record.get("verdicts") for record in metrics]
    return {name: [None if count is None else count.get(name, 0) for count in counts] for name in names}


def _messages(rollouts: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """The most frequent messages, without their places in the program: [verdict, message, count, share of all rows]."""
    rows = list(rollouts)
    counts = Counter((row["verdict"], PLACE.sub("", row["message"])) for row in rows if row.get("message"))
    return [[*kind, count, count / len(rows)] for kind, count in counts.most_common(SHOWN_MESSAGES)]


def _step_intervals(rollouts: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """95 % interval of each step's pass rate from the spread between its problems: {step: [low, high]}."""
    solved: dict[int, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rollouts:
        if row["set"] == "train" and row["verdict"] != "NO_VERDICT":
            solved[row["step"]][row["problem"]].append(row["verdict"] == "ACCEPTED")
    intervals = {}
    for step, problems in solved.items():
        rates = [sum(values) / len(values) for values in problems.values()]
        mean, count = sum(rates) / len(rates), len(rates)
        if count > 1:
            half = 1.96 * math.sqrt(sum((rate - mean) ** 2 for rate in rates) / (count - 1) / count)
            intervals[str(step)] = [max(0.0, mean - half), min(1.0, mean + half)]
    return intervals


def _rollouts(folder: Path) -> list[dict[str, Any]]:
    """Rollouts of training steps and held-out evaluations, oldest first."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.jsonl")):
        kind, _, number = path.stem.rpartition("-")
        if not number.isdigit():
            continue
        for row in read_json_lines(path, **ROLLOUT):
            rows.append(_finite(row) | {"set": "train" if kind == "step" else kind, "step": int(number)})
    return sorted(rows, key=lambda row: (row["step"], row["set"]))


def _problems(folder: Path, wanted: set[str]) -> tuple[dict[str, Any], str]:
    """Prompts and first tests of the problems of the rollouts; a sentence where the data set cannot be read again."""
    settings = load_config(folder / "config.yaml")
    if not wanted:
        return {}, ""
    try:
        config = resolved(settings, starter=settings.model == STARTER, gpu=True)  # refuses nothing that was run
        sets = load_problem_sets(config)
        task = task_of(config)
    except (UserError, OSError) as error:
        return {}, f"Prompts and tests are missing: {error}"
    found = {problem.id: problem for problem in (*sets.train, *sets.validation, *sets.held_out) if problem.id in wanted}
    return {name: _problem(problem, task.prompt.messages(problem)) for name, problem in found.items()}, ""


def _problem(problem: Problem, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "source": problem.source,
        "difficulty": problem.difficulty,
        "prompt": "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages),
        "tests": [[_cut(test.input), _cut(test.output)] for test in problem.tests[:SHOWN_TESTS]],
        "time_limit": problem.time_limit,
    }


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"
