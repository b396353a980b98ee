"""A report of one or more runs, from their folders to the files that people open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.report.collect import run_data
from pipeline.report.page import write_page
from pipeline.report.pictures import draw
from pipeline.run_folder import check_target


def write_report(runs: Sequence[Path], out: Path | None, max_rollouts: int, pictures: bool) -> Iterator[Path]:
    """Write the page, to `report.html` in the first run where `out` is None, and the pictures beside it; yields each
    file once it is there. Raises `ConfigError` for a folder that holds no run."""
    target = out or runs[0] / "report.html"
    if out is not None:
        check_target(out)
    collected = [run_data(run, max_rollouts) for run in runs]
    names = [run["name"] for run in collected]
    for run, folder in zip(collected, runs, strict=True):
        if names.count(run["name"]) > 1:  # as seed0/run and seed1/run are
            run["name"] = "-".join(folder.resolve().parts[-2:])
    write_page(collected, target)
    yield target
    for run in collected if pictures else ():
        yield from draw(run, target.parent, prefix=f"{run['name']}-" if len(runs) > 1 else "")
