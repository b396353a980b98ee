"""Files that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A temporary name for a file that takes the place of `path` when the context ends without an error, and else is
    removed; readers see the old or the new one, never a part. Its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` when the context ends without an error."""
    # A text may hold bytes that are no UTF-8, kept as lone surrogates: written as \\udcXX, the escape of JSON.
    with _aside(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as out:
        yield out


def write_text(path: Path, text: str) -> None:
    with replacing(path) as out:
        out.write(text)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Tensors by name as safetensors, each contiguous and in storage of its own. The file has the rights of any other:
    that library's can be read by nobody but their owner."""
    from safetensors.torch import save_file

    with _aside(path) as temporary:
        temporary.touch()
        rights = temporary.stat().st_mode
        save_file(dict(tensors), temporary, dict(metadata) if metadata else None)
        temporary.chmod(rights)
