"""Records of a data set, one at a time: from a folder, a parquet, JSON-lines, JSON or arrow file, or the hub.

Nothing is held in memory but the current record (a JSON file that is one list is read whole).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.problems import DatasetError, dataset_errors
from data.sources.base import Record, Source
from rewards.files import json_lines

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".arrow")
DESCRIPTIONS = ("dataset_info.json", "dataset_dict.json", "state.json")  # what `save_to_disk` writes beside records
SPLITS = ("train", "test", "validation", "valid", "dev")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def read_records(
    source: Source, location: str | None = None, split: str | None = None, config: str | None = None
) -> Iterator[tuple[str, Record]]:
    """(where, record) of every record of a data set.

    location: a file, a folder, or a hub id; the data set's own hub id where it is None. In a folder, only the files
    are read whose names mention the split, if any does. Raises `DatasetError` for a place without records."""
    split = split or source.split
    path = Path(location) if location else None
    if path is not None and path.is_dir():
        yield from _folder(source, path, split)
    elif path is not None and path.is_file():
        yield from _readable(path, _records(path))
    elif location and not _HUB_ID.fullmatch(location):
        raise DatasetError(
            f"{source.name} at {location}: no such file or folder, and not a hub id of the form owner/name"
        )
    else:
        yield from _hub(source, location or source.hub, split, config or source.config)


def _folder(source: Source, folder: Path, split: str) -> Iterator[tuple[str, Record]]:
    if source.read_folder is not None:
        found = False
        for found_record in _readable(folder, source.read_folder(folder)):
            found = True
            yield found_record
        if found:
            return
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES) and p.name not in DESCRIPTIONS
    )
    named = [p for p in files if _names(p.relative_to(folder), split)]
    if not named and any(_names(p.relative_to(folder), other) for p in files for other in SPLITS):
        raise DatasetError(
            f"{source.name} at {folder}: no file of the split {split!r}; choose another with --split"
        )
    if not files:
        raise DatasetError(f"{source.name} at {folder}: no {', '.join(SUFFIXES)} file in the folder")
    for path in named or files:
        yield from _readable(path, _records(path))


def _names(path: Path, split: str) -> bool:
    """Whether a split's name stands in a path, not as a part of a longer word."""
    return re.search(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])", str(path).lower()) is not None


def _readable(path: Path, records: Iterator[tuple[str, Record]]) -> Iterator[tuple[str, Record]]:
    """The records of a file or folder. Raises `DatasetError` for one that is damaged or not what its name says."""
    try:
        yield from records
    except DatasetError:
        raise
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:  # of all formats alike
        raise DatasetError(f"dataset {path}: it cannot be read ({' '.join(str(error).split())[:160]})") from None


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    records: Iterator[Record]
    if path.suffix == ".parquet":
        import pyarrow.parquet

        records = (row for batch in pyarrow.parquet.ParquetFile(path).iter_batches(64) for row in batch.to_pylist())
    elif path.suffix == ".arrow":
        import pyarrow

        with pyarrow.memory_map(str(path)) as stream:
            table = pyarrow.ipc.open_stream(stream)
            for number, row in enumerate((row for batch in table for row in batch.to_pylist()), 1):
                yield f"{path}, record {number}", row
        return
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(path)
        return
    else:
        records = iter(_json(path))
    for number, record in enumerate(records, 1):
        yield f"{path}, record {number}", record


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    reader: Any = gzip.open if path.suffix == ".gz" else open
    with reader(path, "rb") as file, dataset_errors():
        for number, record in json_lines(file, path):
            where = f"{path}, line {number}"
            if not isinstance(record, Mapping):
                raise DatasetError(f"dataset {where}: not a JSON object")
            yield where, record


def _json(path: Path) -> list[Record]:
    """A list of objects; an object is one record."""
    with path.open(encoding="utf-8") as file:
        start = file.read(1)
        file.seek(0)
        try:
            value = json.load(file)
        except json.JSONDecodeError as error:
            file.seek(0)
            if start == "{":  # JSON lines under another name
                return [record for _, record in _json_lines(path)]
            raise DatasetError(f"dataset {path}: not valid JSON ({error.msg}, line {error.lineno})") from None
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, list) or not all(isinstance(record, Mapping) for record in value):
        raise DatasetError(f"dataset {path}: not a list of objects")
    return value


def _hub(source: Source, name: str, split: str, config: str | None) -> Iterator[tuple[str, Record]]:
    if not name:
        raise DatasetError(f"{source.name} is not on the hub; give a file or folder")
    import datasets

    try:
        if source.hub_files and name == source.hub:
            files = f"hf://datasets/{name}/{source.hub_files}"
            stream = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
        else:
            stream = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the library raises many kinds for one cause: the hub cannot be read
        reason = " ".join(str(error).split())[:200]
        raise DatasetError(
            f"{source.name}: the hub's {name} (split {split}) cannot be read ({type(error).__name__}: {reason}); "
            f"give a local file or folder instead"
        ) from None
    for number, record in enumerate(stream, 1):
        yield f"{name}, {split} record {number}", record
