"""The report's curves as PNG files, for places where a page cannot go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {
    "ACCEPTED": "#2a9d5c",
    "WRONG_ANSWER": "#e0a030",
    "TIME_LIMIT": "#8a63c9",
    "MEMORY_LIMIT": "#b58ad9",
    "OUTPUT_LIMIT": "#c77dba",
    "RUNTIME_ERROR": "#d9702f",
    "COMPILE_ERROR": "#c7413b",
    "NO_CODE": "#7a7f87",
    "NO_VERDICT": "#c9ccd1",
}
LANES = {  # of the time line, from top to bottom
    "generate": "tab:blue",
    "evaluate": "tab:cyan",
    "train": "tab:orange",
    "refresh": "tab:red",
    "grade": "tab:green",
}


def draw(run: dict[str, Any], folder: Path, prefix: str = "") -> list[Path]:
    """Draw solving.png, scalars.png, time.png, timeline.png and verdicts.png of a run as `collect.run_data` gives
    it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written = []
    panels = {"solving": _solving, "scalars": _scalars, "time": _time, "timeline": _timeline, "verdicts": _verdicts}
    for name, panel in panels.items():
        figure, axis = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
        axis.set(xlabel="step")
        panel(axis, run)
        path = folder / f"{prefix}{name}.png"
        temporary = path.with_name(f".{path.name}")
        figure.savefig(temporary, dpi=120, format="png")
        temporary.replace(path)
        plt.close(figure)
        written.append(path)
    return written


def _numbers(values: list[float | None]) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _solving(axis: Any, run: dict[str, Any]) -> None:
    axis.plot(run["steps"], _numbers(run["curves"]["pass_rate"]), color="tab:blue", label="training rollouts")
    bands = sorted((int(step), ends) for step, ends in run["intervals"].items())
    if bands:
        steps, ends = zip(*bands, strict=True)
        axis.fill_between(steps, *zip(*ends, strict=True), color="tab:blue", alpha=0.15, linewidth=0)
    for point in run["evaluations"]:
        error = [[point["value"] - point["low"]], [point["high"] - point["value"]]]
        axis.errorbar([point["step"]], [point["value"]], yerr=error, fmt="o", color="black", capsize=4)
    axis.plot([], [], "ko", label="held-out pass@1")
    axis.set(title="Share of completions that pass, with 95 % intervals", ylim=(0, 1))
    axis.legend(loc="best")


def _scalars(axis: Any, run: dict[str, Any]) -> None:
    if run["v"]:
        axis.plot(run["steps"], run["v"], linewidth=0.8)
    axis.set(title=f"All {len(run['v'][0]) if run['v'] else 0} trained numbers")


def _time(axis: Any, run: dict[str, Any]) -> None:
    if run["steps"]:
        parts = {name: np.nan_to_num(_numbers(values)) for name, values in run["seconds"].items()}
        axis.stackplot(run["steps"], list(parts.values()), labels=list(parts), alpha=0.85)
        axis.legend(loc="best")
    axis.set(title="Seconds of a step, by phase")


def _timeline(axis: Any, run: dict[str, Any]) -> None:
    """A lane each for what ran in the last steps, with a line where a step ended."""
    lanes = [name for name in LANES if name in run["timeline"]["lanes"]]
    for place, name in enumerate(lanes):
        spans = run["timeline"]["lanes"][name]
        axis.broken_barh([(start, end - start) for start, end in spans], (place - 0.35, 0.7), color=LANES[name])
    for step, end in run["timeline"]["steps"]:
        axis.axvline(end, color="grey", linewidth=0.8)
        axis.annotate(f"step {step} ", (end, -0.5), ha="right", va="bottom", fontsize=8, color="grey")
    axis.set_yticks(range(len(lanes)), lanes)
    axis.set_ylim(len(lanes) - 0.4, -0.9)
    idle = [f"{name} {np.nanmean(_numbers(shares)):.0%}" for name, shares in run["idle"].items() if any(shares)]
    title = "What ran when, in the last steps" + (f"; idle over the run: {', '.join(idle)}" if idle else "")
    axis.set(title=title, xlabel="seconds")


def _verdicts(axis: Any, run: dict[str, Any]) -> None:
    names = [name for name in COLOURS if name in run["verdicts"]]
    if names:
        counts = np.nan_to_num(np.stack([_numbers(run["verdicts"][name]) for name in names]))
        shares = counts / np.maximum(1, counts.sum(axis=0))
        labels = [name.lower().replace("_", " ") for name in names]
        axis.stackplot(run["steps"], shares, labels=labels, colors=[COLOURS[name] for name in names])
        axis.legend(loc="lower left")
    axis.set(title="Verdicts of the training rollouts", ylim=(0, 1))
