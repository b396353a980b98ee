"""What every benchmark does around its measurement: the model and its settings before; table, JSON, picture after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.bench.chart import draw_rows
from pipeline.bench.form import Row, describe_machine, print_table, report
from pipeline.config import ConfigError, RunConfig, Settings, resolved
from pipeline.environment import has_gpu
from pipeline.launch import check_packages, check_processes
from pipeline.policy.models import ModelChoice, choose_model, made_ready
from pipeline.run_folder import check_target
from pipeline.versions import provenance
from storage.files import write_json


def settings_of(model: str, **options: Any) -> tuple[ModelChoice, RunConfig, bool]:
    """The model, ready to be loaded, the settings of a training run on it, and whether a GPU answers."""
    check_processes()
    choice = choose_model(model)
    asked = Settings(model=choice.name, **{"dataset": "starter", **options})  # else the benchmark's own problems
    config = resolved(asked, starter=choice.is_starter, gpu=has_gpu())
    check_packages(config)
    return made_ready(choice), config, has_gpu()


def measured(title: str, out: Path, measure: Callable[[], Sequence[Row]], versions: Mapping[str, str]) -> str:
    """Measure, print the table, write JSON and picture; returns a line that says where they are."""
    machine, code = describe_machine(), provenance()
    picture = picture_beside(out)
    rows = measure()
    print_table(title, rows)
    write_json(out, report(rows, machine, {**code, **versions}))
    draw_rows(title, rows, picture)
    return f"wrote {out} and {picture}"


def picture_beside(out: Path) -> Path:
    """The PNG beside the JSON. Raises `ConfigError`, before anything is measured, for a file that cannot be written."""
    if out.suffix in ("", ".png"):
        raise ConfigError(f"--out {out}: needs the ending .json or another; .png is the picture's")
    check_target(out)
    return out.with_suffix(".png")
