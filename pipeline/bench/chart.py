"""The picture of a benchmark: a bar for every row, grouped by unit; red where it misses what it must reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.bench.form import Row, readable


def draw_rows(title: str, rows: Sequence[Row], path: str | Path) -> None:
    """Draw `rows` as horizontal bars, one panel per unit, the baseline in grey behind each; the file appears whole."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = Path(path)
    units = list(dict.fromkeys(one.unit for one in rows))
    panels = {unit: [one for one in rows if one.unit == unit] for unit in units}
    heights = [len(panel) + 1 for panel in panels.values()]
    figure, axes = plt.subplots(
        len(units),
        1,
        figsize=(9, 0.38 * sum(heights) + 1),
        height_ratios=heights,
        squeeze=False,
        constrained_layout=True,
    )
    figure.suptitle(title)
    for axis, (unit, panel) in zip(axes[:, 0], panels.items(), strict=True):
        places = range(len(panel))
        baselines = [one.baseline or 0 for one in panel]
        colors = ["tab:red" if one.ok is False else "tab:blue" for one in panel]
        axis.barh(places, baselines, height=0.75, color="lightgrey")
        bars = axis.barh(places, [one.value for one in panel], height=0.4, color=colors)
        texts = [readable(one.value) + (f"  ({one.ratio:.3g} ×)" if one.ratio is not None else "") for one in panel]
        axis.bar_label(bars, texts, padding=3, fontsize=8)
        axis.set_yticks(places, [one.what for one in panel], fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_xlabel(unit + (", baseline in grey" if any(baselines) else ""), fontsize=8)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    temporary.replace(path)
