"""The measurements behind `python scripts/bench.py steps RUN ...`: what the steps of runs consisted of, read from their
folders. What a step cannot be shorter than is the longer of what this process did and what the graders did."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.bench.form import Row, row
from pipeline.config import ConfigError, load_config
from pipeline.run_folder import read_json, read_json_lines

BAR = 1.15  # of a step with `--staleness 1` to its bound
FEWEST = 3  # steps between the first, which compiles, and the last, which draws nothing with `--staleness 1`


def measure(folders: Sequence[Path], at_most: float | None) -> list[Row]:
    """Medians over the steps of each run but the first and the last; seconds a step have the bar `at_most`.

    Raises `ConfigError` for a run without enough steps."""
    rows: list[Row] = []
    for folder in folders:
        stale = load_config(folder / "config.yaml").staleness
        workers = read_json(folder / "grader.json").get("workers", 0)
        records = {record["step"]: record for record in read_json_lines(folder / "metrics.jsonl")}
        lines = [line for line in read_json_lines(folder / "timeline.jsonl") if line["step"] in records][1:-1]
        if len(lines) < FEWEST:
            raise ConfigError(f"{folder}: a time line of at least {FEWEST + 2} steps is needed")
        phases = [_phases(line, records[line["step"]], workers) for line in lines]
        median = {name: statistics.median(phase[name] for phase in phases) for name in phases[0]}
        bound = max(median["device"], median["grade"])
        name = f"{folder.name}, --staleness {stale}"
        rows.append(row(f"{name}: seconds a step", median["step"], "s", at_most=at_most))
        rows.append(
            row(f"{name}: a step, against max(generate + train + refresh, grade)", median["step"], "s", baseline=bound,
                at_most=BAR if stale else None)
        )  # fmt: skip
        what = {"generate": "generating", "train": "training", "refresh": "refreshing", "evaluate": "evaluating"}
        rows += [row(f"{name}: {label}", median[phase], "s") for phase, label in what.items()]
        rows.append(row(f"{name}: graders' work, on all {workers}", median["grade"], "s"))
        rows.append(row(f"{name}: nothing generated, trained or refreshed", median["step"] - median["device"], "s"))
        rows.append(row(f"{name}: of it waiting for verdicts", median["wait"], "s"))
    return rows


def _phases(line: dict[str, Any], record: dict[str, Any], workers: int) -> dict[str, float]:
    """Seconds of one step by what was done."""
    length = line["end"] - line["start"]
    lanes = {name: sum(end - start for start, end in spans) for name, spans in line["lanes"].items()}
    idle = record["idle"]
    work = {name: lanes.get(name, 0.0) for name in ("generate", "train", "refresh", "evaluate")}
    grade = length * (1 - idle["graders"]) if workers else 0.0
    wait = record["seconds"]["grade_wait"]
    return work | {"step": length, "device": length * (1 - idle["device"]), "grade": grade, "wait": wait}
