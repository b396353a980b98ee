"""Files that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.files import write_json, write_json_lines


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    write_json_lines(path, [{"a": 1}, {"a": 2}])

    def broken() -> Iterator[dict]:
        yield {"a": 3}
        raise ValueError

    with pytest.raises(ValueError):
        write_json_lines(path, broken())
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"a": 2}]
    assert list(path.parent.iterdir()) == [path]


def test_bytes_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "\udcff é"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"text": "\udcff é"}
