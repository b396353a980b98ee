"""What the scripts that kill runs have in common: options, when a run is saving, and what must be there at its end."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser_of(about: str, kills: int) -> argparse.ArgumentParser:
    """Options of a script that kills. about: its docstring. kills: how many by default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the runs; may be new")
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    return parser


def writing(folder: Path) -> bool:
    """Whether a checkpoint of the run is half written."""
    return any(folder.glob(".partial/checkpoint-*"))


def steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def missing(folder: Path, steps: int, completions: int) -> list[str]:
    """What a run should have left and did not: a line for each of its steps, so many completions in each, once each."""
    from pipeline.run_folder import read_json_lines

    found = [record["step"] for record in read_json_lines(folder / "metrics.jsonl")]
    faults = [] if found == list(range(1, steps + 1)) else [f"metrics.jsonl has the steps {found}"]
    rows = {path.stem: len(read_json_lines(path)) for path in sorted((folder / "rollouts").glob("step-*.jsonl"))}
    if sorted(rows) != [f"step-{step:05d}" for step in range(1, steps + 1)]:
        faults.append(f"rollouts/ has {sorted(rows)}")
    return faults + [f"{name} has {count} completions" for name, count in rows.items() if count != completions]


def distance(folder: Path, whole: Path) -> float:
    """How far `v` of a run is from that of another, in lengths of the latter."""
    from adapters import read_checkpoint

    own, other = (read_checkpoint(path).v for path in (folder, whole))
    return float((own - other).norm() / other.norm())


def other_completions(folder: Path, whole: Path) -> int:
    """How many completions of a run's steps are not those of another's."""
    from pipeline.run_folder import read_json_lines

    pairs = ((path, whole / "rollouts" / path.name) for path in (folder / "rollouts").glob("step-*.jsonl"))
    return sum(own["completion"] != other["completion"] for pair in pairs
               for own, other in zip(*map(read_json_lines, pair), strict=True))  # fmt: skip
