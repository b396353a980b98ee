"""The settings of a conversion to problems (`scripts/prepare_data.py`)."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from data.difficulty import parse_windows
from storage.settings import STRICT, Declared, setting


@dataclass(frozen=True, config=STRICT)
class Preparation(Declared):
    """What is converted and kept. Sizes are in bytes; None keeps everything."""

    source: str = setting(..., "The data set.")
    out: str = setting(..., "Where the problems go, a .jsonl file.")
    location: str | None = setting(
        None, "Folder, parquet, arrow, JSON-lines or JSON file, or another hub id.", flag="--from"
    )
    split: str | None = setting(None, "Split to read. Default: the data set's training split.")
    config: str | None = setting(None, "The data set's configuration on the hub.")
    only_sources: tuple[str, ...] = setting(
        (), "Keep problems of this origin, such as codeforces. Repeatable.", flag="--source"
    )
    difficulty: str | None = setting(
        None, "Keep windows such as 800:1200, A:C or easy:medium, separated by commas."
    )
    min_tests: int = setting(0, "Drop problems with fewer tests.", ge=0)
    max_tests: int | None = setting(None, "Keep so many tests of a problem, spread over their sizes.", ge=1)
    max_test_bytes: int | None = setting(None, "Leave out tests whose input and output are larger.", ge=1)
    text_language: Literal["en", "zh", "ja", "ru"] | None = setting(None, "Keep statements in this language.")
    against: tuple[str, ...] = setting((), "Drop what overlaps with this set, a .jsonl file. Repeatable.")
    held_out: float = setting(
        0.0, "Share that goes to FILE.held_out.jsonl, without leakage.", ge=0, lt=1, why=", a share of the problems"
    )
    max_samples: int | None = setting(None, "Keep so many problems, chosen at random.", ge=1)
    seed: int = setting(0, "Seeds the choice and the split.")
    verify: bool = setting(True, "Grade the set's reference solutions, if it has any.")
    workers: int | None = setting(None, "Grader processes. Default: one per core.", ge=1, flag="--grader-workers")
    unsafe_grader: bool = setting(False, "Verify even where programs cannot be sandboxed.")

    def __post_init__(self) -> None:
        if self.difficulty is not None:
            parse_windows(self.difficulty)
