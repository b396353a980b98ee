"""Loaders of public data sets: a small module for each, a table of all of them, one reader (`reading.py`).

A loader turns records of the published shape into `rewards.problem.Problem`; `data/prepare.py` filters what comes
out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.problems import DatasetError
from data.sources import (
    apps,
    code_contests,
    countdown,
    deepcoder,
    gsm8k,
    humaneval_x,
    kattis,
    livecodebench,
    luogu,
    mbxp,
    open_r1,
    q,
)
from data.sources.base import Loaded, Record, Skip, Source
from data.sources.reading import read_records

__all__ = ["SOURCES", "Loaded", "Record", "Skip", "Source", "convert_record", "find_source", "is_prepared", "load"]

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        code_contests.SOURCE,
        deepcoder.SOURCE,
        luogu.SOURCE,
        livecodebench.SOURCE,
        open_r1.SOURCE,
        apps.TACO,
        apps.APPS,
        kattis.SOURCE,
        gsm8k.SOURCE,
        countdown.SOURCE,
        q.SOURCE,
        humaneval_x.SOURCE,
        mbxp.SOURCE,
    )
}


def find_source(name: str) -> Source:
    """The data set of this name; dashes and underscores are alike. Raises `DatasetError` listing the names."""
    found = SOURCES.get(name.lower().replace("-", "_"))
    if found is None:
        raise DatasetError(f"data set {name!r} is unknown; use one of {', '.join(SOURCES)}")
    return found


def convert_record(source: Source, record: Record) -> Loaded:
    """`source.convert`, with a record of the wrong shape turned into a `Skip`, too."""
    try:
        return source.convert(record)
    except Skip:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise Skip(f"the record does not have the documented format ({type(error).__name__}: {error})") from None


def load(source: Source, location: str | None = None, split: str | None = None) -> Iterator[tuple[str, Loaded | Skip]]:
    """(where, problem or the reason why not) of every record."""
    for where, record in read_records(source, location, split):
        try:
            yield where, convert_record(source, record)
        except Skip as reason:
            yield where, reason


def is_prepared(path: Path) -> bool:
    """Whether a JSON-lines file holds problems in this project's form: its first record has a statement."""
    import json

    if not path.name.endswith(".jsonl"):
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "statement" in record
