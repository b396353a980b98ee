"""The common form of every benchmark: rows of a measured value and its baseline, as a table and as JSON.

    {"machine": {...}, "versions": {...}, "rows": [{what, value, unit, baseline, ratio, bar, ok}]}

A claim is a ratio of two things measured side by side in one run; `bar` is what the ratio (or, without a baseline, the
value) must reach. Imports nothing heavy: versions are read from the packages' metadata.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.environment import has_gpu, machine_memory

PAPER_WIDTH = 150  # columns of a table that is not printed to a terminal


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `ok` is None where there is no bar to clear."""

    what: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    bar: str = ""
    ok: bool | None = None


def row(
    what: str,
    value: float,
    unit: str,
    *,
    baseline: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """A row whose `ratio` is value / baseline, with a bar on the ratio, or on the value where there is no baseline."""
    ratio = None if baseline is None else value / baseline
    judged = value if ratio is None else ratio
    if at_least is not None:
        return Row(what, value, unit, baseline, ratio, f">= {at_least:g}", judged >= at_least)
    if at_most is not None:
        return Row(what, value, unit, baseline, ratio, f"<= {at_most:g}", judged <= at_most)
    return Row(what, value, unit, baseline, ratio)


def readable(value: float) -> str:
    """A number with four digits that count, and no exponent where it is large."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def describe_machine() -> dict[str, Any]:
    """The machine as far as it matters for speed: CPU, cores usable by this process, memory, kernel, GPU and driver."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else ""
    about = {
        "cpu": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": machine_memory(),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }
    if has_gpu():
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        about["gpu"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return about


def report(rows: Sequence[Row], machine: dict[str, Any], versions: dict[str, str]) -> dict[str, Any]:
    return {"machine": machine, "versions": versions, "rows": [asdict(one) for one in rows]}


def print_table(title: str, rows: Sequence[Row]) -> None:
    """The rows as a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=title)
    for name in ("what", "value", "unit", "baseline", "ratio", "bar", "ok"):
        table.add_column(name, justify="left" if name in ("what", "unit") else "right")
    for one in rows:
        table.add_row(
            one.what,
            readable(one.value),
            one.unit,
            "" if one.baseline is None else readable(one.baseline),
            "" if one.ratio is None else f"{one.ratio:.3g}",
            one.bar,
            {None: "", True: "yes", False: "NO"}[one.ok],
        )
    Console(width=console.width if console.is_terminal else PAPER_WIDTH).print(table)
