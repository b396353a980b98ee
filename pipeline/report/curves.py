"""The picture of a run: `curves.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.run_folder import PHASES


def draw_curves(records: list[dict[str, Any]], summary: dict[str, Any], path: Path) -> None:
    """Four panels over the steps: pass rate with the held-out evaluations, the scalars, KL and mismatch, seconds by
    phase."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rollouts = [record for record in records if record.get("pass_rate") is not None]
    steps = [record["step"] for record in rollouts]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)

    rate = axes[0, 0]
    rate.plot(steps, [record["pass_rate"] for record in rollouts], color="tab:blue", label="train pass rate")
    rate.plot(steps, [record["reward"] for record in rollouts], color="tab:orange", alpha=0.6, label="train reward")
    last = records[-1]["step"] if records else 0
    for name, step, side in (("before", 0, "left"), ("after", last, "right")):
        point = summary[name]
        if point["pass_at_1"] is None:
            continue
        error = [[point["pass_at_1"] - point["low"]], [point["high"] - point["pass_at_1"]]]
        rate.errorbar([step], [point["pass_at_1"]], yerr=error, fmt="o", color="black", capsize=4, zorder=3)
        label = f"{name} {point['pass_at_1']:.2f}"
        rate.annotate(label, (step, point["high"] + 0.01), ha=side, va="bottom", fontsize=9)
    rate.plot([], [], "ko", label="held-out pass@1, 95 % interval")
    rate.set(title="Solving problems", xlabel="step", ylim=(0, 1))
    rate.legend(loc="lower right", fontsize=8)

    scalars = axes[0, 1]
    if records:
        scalars.plot([record["step"] for record in records], [record["v"] for record in records], linewidth=0.8)
    scalars.set(title=f"All {len(records[0]['v']) if records else 0} trained numbers", xlabel="step")

    drift = axes[1, 0]
    for key, label in (("kl_base", "KL to the base"), ("mismatch", "engine-trainer mismatch")):
        points = [(r["step"], r[key]) for r in rollouts if (r.get(key) or 0) > 0]
        if points:
            drift.semilogy(*zip(*points, strict=True), label=label)
            drift.legend(fontsize=8)
    drift.set(title="Drift, k3 per token", xlabel="step")

    phases = axes[1, 1]
    phases.stackplot(steps, [[r["seconds"][name] for r in rollouts] for name in PHASES], labels=PHASES)
    phases.set(title="Seconds a step", xlabel="step")
    phases.legend(loc="upper right", fontsize=8)

    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    temporary.replace(path)
