"""A run on disk: its config, one line of metrics a step, its rollouts, its checkpoints and its summary.

`metrics.jsonl` grows by whole lines; a resumed
run first drops the lines after its checkpoint, since it will write them again.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import adapters
from pipeline.config import ConfigError, RunConfig
from rewards.files import json_lines
from rewards.problem import ProblemError
from storage.errors import UserError
from storage.files import write_json, write_json_lines

RUNS = Path("runs")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
KEPT_CHECKPOINTS = 2
LEFT = ("metrics.jsonl", "evaluations.jsonl", "validation.jsonl", "best", "rollouts/*.jsonl", "checkpoint-*")  # by runs
STATES = {"staleness": "ahead.json", "dynamic_sampling": "dynamic_sampling.json"}  # of a checkpoint, by setting
FIELDS: dict[str, dict[str, type]] = {  # what these files of a checkpoint must hold
    "trainer_state.json": {"global_step": int},
    "ahead.json": {"version": int, "v": list},
    "dynamic_sampling.json": {"position": int, "share": float},
}
PHASES = ("generate", "grade_wait", "log_probs", "backward", "refresh")  # of a step, timed in `metrics.jsonl`


def check_target(out: Path) -> None:
    """Make the folder of `--out`. Raises `ConfigError`, before hours of work, where no file can be written."""
    check_folder(out.parent, f"--out {out}")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it")


def check_folder(folder: Path, asked: str) -> None:
    """Make a folder, for what was asked for with an option and its value. Raises `ConfigError`, before hours of work,
    where it cannot be made or nothing be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(dir=folder))
    except OSError as error:
        raise ConfigError(f"{asked}: the folder cannot be made ({error.strerror}); choose another") from None


def read_json(path: Path, **kinds: Any) -> dict[str, Any]:
    """A JSON object; kinds: types of fields. Raises `ConfigError` for anything else."""
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: not valid JSON ({error})") from None
    if fault := _fault(record, kinds):
        raise ConfigError(f"{path} is damaged: {fault}")
    return record


def _fault(record: Any, kinds: Mapping[str, Any]) -> str | None:
    """What keeps a record from being an object with such fields, or None."""
    if not isinstance(record, dict):
        return "not a JSON object"
    wrong = [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]
    return f"{wrong[0]!r} is missing or of another type" if wrong else None


def read_json_lines(path: Path, **kinds: Any) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a last line cut short by a kill is left out. kinds: types of fields.

    Raises `ConfigError` for any other line that is no JSON object with such fields."""
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    records = []
    try:
        for number, record in json_lines(io.BytesIO(whole), path):
            if fault := _fault(record, kinds):
                raise ProblemError(f"{path}, line {number}: {fault}")
            records.append(record)
    except ProblemError as error:
        raise ConfigError(f"{error}; the file is damaged") from None
    return records


def checkpoint_fault(folder: Path, states: Iterable[str] = ()) -> str | None:
    """What is wrong with a trainer's checkpoint, or None. Archives are read through, so that a flipped bit shows.
    states: the files of `STATES` that it must have."""
    try:
        adapters.read_checkpoint(folder)
        for name in ("trainer_state.json", *states):
            read_json(folder / name, **FIELDS[name])
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            with zipfile.ZipFile(folder / name) as archive:
                if archive.testzip() is not None:
                    return f"{name} is damaged"
    except (UserError, OSError, ValueError, zipfile.BadZipFile) as error:
        return " ".join(str(error).split())[:160]
    return None


def _new_folder(name: str) -> Path:
    """A folder under runs/ that this process alone has made: several runs may begin in one second."""
    check_folder(RUNS, f"--output-dir {RUNS / name}")
    path, number = RUNS / name, 1
    while True:
        with suppress(FileExistsError):
            path.mkdir()
            return path
        number += 1
        path = RUNS / f"{name}-{number}"


class RunFolder:
    """The folder of one run. `create` refuses to write over a run, `resume` continues one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, output_dir: str | None, name: str) -> RunFolder:
        path = Path(output_dir) if output_dir else _new_folder(f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
        if path.is_dir() and any(found for left in LEFT for found in path.glob(left)):
            raise ConfigError(
                f"{path} already holds a run: add --resume to continue it, or choose another --output-dir"
            )
        folder = cls(path)
        folder._check_adapter()
        check_folder(path / "rollouts", f"--output-dir {path}")
        return folder

    @classmethod
    def resume(cls, output_dir: str | None) -> RunFolder:
        """The given folder; else the newest under runs/ that has a checkpoint, or if none has, the newest. Raises
        `ConfigError` where there is nothing to continue."""
        if output_dir is None:
            runs = [cls(path.parent) for path in RUNS.glob("*/config.yaml")]
            if not runs:
                raise ConfigError(f"--resume: there is no run under {RUNS}/; name one with --output-dir")
            begun = [run for run in runs if run.checkpoints()]  # not what failed as it started
            return max(begun or runs, key=lambda run: (run.path / "config.yaml").stat().st_mtime)
        if not (Path(output_dir) / "config.yaml").is_file():
            raise ConfigError(f"--resume: {output_dir} contains no run (no config.yaml)")
        return cls(Path(output_dir))

    @property
    def resume_command(self) -> str:
        return f"python scripts/train.py --resume --output-dir {shlex.quote(str(self.path))}"

    def _check_adapter(self) -> None:
        """Raise `ConfigError` where a run from its start on would replace an adapter, such as an export."""
        if (self.path / "tinylora.safetensors").exists():
            raise ConfigError(
                f"{self.path} holds an adapter without checkpoints, which the run's would replace: choose another "
                f"--output-dir"
            )

    # metrics and rollouts

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add one line to `<name>.jsonl`."""
        with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")

    def truncate(self, name: str, last_step: int) -> list[dict[str, Any]]:
        """Keep the whole lines of `<name>.jsonl` up to and including `last_step`; returns their records."""
        path = self.path / f"{name}.jsonl"
        kept = [record for record in read_json_lines(path, step=int) if record["step"] <= last_step]
        if path.is_file():
            write_json_lines(path, kept)
        return kept

    def write_rollouts(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        write_json_lines(self.path / "rollouts" / f"{name}.jsonl", rows)

    def counts(self, name: str) -> dict[str, tuple[int, int]]:
        """(accepted, graded) of each problem in the rollouts of that name."""
        found: dict[str, tuple[int, int]] = {}
        for row in read_json_lines(self.path / "rollouts" / f"{name}.jsonl"):
            accepted, graded = found.get(row["problem"], (0, 0))
            right, judged = row["verdict"] == "ACCEPTED", row["verdict"] != "NO_VERDICT"
            found[row["problem"]] = (accepted + right, graded + judged)
        return found

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        write_json(self.path / name, record)

    # checkpoints

    @property
    def partial(self) -> Path:
        """Where a checkpoint is written before it is whole."""
        return self.path / ".partial"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of the whole checkpoints, oldest first."""
        found = ((CHECKPOINT.fullmatch(path.name), path) for path in self.path.glob("checkpoint-*"))
        return sorted((int(match.group(1)), path) for match, path in found if match)

    def whole_checkpoint(self, config: RunConfig) -> tuple[int, Path | None]:
        """(step, folder) of the last checkpoint that can be read, (0, None) in a run without any; says what it passes
        over. config: of the run. Raises `ConfigError` where all are damaged, and for an adapter without any."""
        checkpoints = self.checkpoints()
        states = [name for setting, name in STATES.items() if getattr(config, setting)]
        for step, path in reversed(checkpoints):
            fault = checkpoint_fault(path, states)
            if fault is None:
                return step, path
            print(f"{path} is damaged ({fault}); going back to the one before it", flush=True)
        if checkpoints:
            raise ConfigError(f"--resume: every checkpoint in {self.path} is damaged; start a new run")
        self._check_adapter()
        return 0, None

    def publish_checkpoint(self, step: int) -> None:
        """Rename a whole checkpoint to its place and drop the ones that it replaces."""
        target = self.path / f"checkpoint-{step}"
        if target.exists():
            shutil.rmtree(target)
        os.replace(self.partial / target.name, target)
        for _, old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
