"""What trackers see beyond TRL's own metrics: this project's metrics as numbers, and rollouts as tables.

The trackers themselves are TRL's callbacks (`report_to`); nothing here runs where none is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TABLE_ROWS = 8  # rollouts of a step that are shown
COLUMNS = ("step", "problem", "verdict", "reward", "advantage", "tokens", "completion")


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """A step's record flattened: `seconds/generate`, `verdicts/ACCEPTED`; whatever is no number is left out."""
    flat: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{key}": float(x) for key, x in value.items() if isinstance(x, int | float)}
        elif isinstance(value, int | float) and name != "step":
            flat[name] = float(value)
    return flat


def log_rollouts(tracker: str, callbacks: Sequence[Any], step: int, rollouts: Sequence[Mapping[str, Any]]) -> None:
    """Show the first rollouts of a step as a table in `tracker`; nothing for `none`."""
    rows = [[row.get(name) for name in COLUMNS] for row in rollouts[:TABLE_ROWS]]
    if tracker == "none" or not rows:
        return
    if tracker == "tensorboard":
        writers = (getattr(callback, "tb_writer", None) for callback in callbacks)
        writer = next((writer for writer in writers if writer is not None), None)
        if writer is not None:
            writer.add_text("rollouts", markdown_table(rows), step)
    elif tracker == "wandb":
        import wandb

        if wandb.run is not None:
            table = wandb.Table(columns=list(COLUMNS), data=[[_plain(cell) for cell in row] for row in rows])
            wandb.log({"rollouts": table, "train/global_step": step})
    elif tracker == "trackio":
        import pandas
        import trackio  # pyright: ignore[reportMissingImports]

        trackio.log({"rollouts": trackio.Table(dataframe=pandas.DataFrame(rows, columns=list(COLUMNS)))})


def markdown_table(rows: Sequence[Sequence[Any]]) -> str:
    """The rows as a Markdown table; programs as indented text, since a cell holds one line."""
    text = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        cells = [str(_plain(cell)).replace("|", "&#124;").replace("<", "&lt;").replace("\n", "<br>") for cell in row]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def _plain(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else "" if value is None else value


def prepare_tracker(tracker: str, folder: Path) -> None:
    """Keep a tracker's files in the run's folder, under the run's name."""
    import os

    if tracker == "tensorboard":
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    elif tracker == "wandb":
        os.environ.setdefault("WANDB_DIR", str(folder))
        os.environ.setdefault("WANDB_PROJECT", "tinylora-coder")
        os.environ.setdefault("WANDB_NAME", folder.name)
    elif tracker == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
        os.environ.setdefault("TRACKIO_PROJECT", "tinylora-coder")
