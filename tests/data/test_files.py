"""Files of records and of problems: every kind reads alike, and what is wrong with one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.problems import DatasetError, read_problems, write_problems
from data.sources import SOURCES, Loaded, find_source, is_prepared, load, read_records
from rewards.problem import Problem, Test
from tests.data.test_sources import CODE_CONTESTS


def rows() -> list[dict[str, Any]]:
    return [{"nums": [1, 2, 3], "target": 6 + i} for i in range(3)]


def write_table(path: Path, table: list[dict[str, Any]]) -> Path:
    import gzip

    import pyarrow
    import pyarrow.parquet

    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    elif path.suffix == ".arrow":
        data = pyarrow.Table.from_pylist(table)
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, data.schema) as writer:
            writer.write_table(data)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in table).encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(table))
    else:
        path.write_text("\n".join(json.dumps(row) for row in table) + "\n\n")
    return path


@pytest.mark.parametrize("name", ["r.parquet", "r.arrow", "r.jsonl", "r.jsonl.gz", "r.json"])
def test_one_reader_for_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / name, rows())
    assert [record for _, record in read_records(SOURCES["countdown"], str(path))] == rows()
    assert [record for _, record in read_records(SOURCES["countdown"], str(tmp_path))] == rows()


def test_a_data_set_saved_to_disk_is_its_records_alone(tmp_path: Path) -> None:
    write_table(tmp_path / "data-00000-of-00001.arrow", rows())
    for name in ("dataset_info.json", "dataset_dict.json", "state.json"):
        (tmp_path / name).write_text("{}")
    assert [record for _, record in read_records(SOURCES["countdown"], str(tmp_path))] == rows()


def test_nested_columns_survive_parquet(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "c.parquet", [{k: v for k, v in CODE_CONTESTS.items() if v != [] and k != "incorrect_solutions"}]
    )
    ((_, row),) = load(SOURCES["code_contests"], str(path))
    assert isinstance(row, Loaded) and len(row.problem.tests) == 3 and row.problem.time_limit == 2.5


def test_a_folder_is_read_by_split(tmp_path: Path) -> None:
    write_table(tmp_path / "train-00000-of-00001.parquet", rows())
    write_table(tmp_path / "test-00000-of-00001.parquet", rows()[:1])
    source = SOURCES["countdown"]
    assert len(list(read_records(source, str(tmp_path)))) == 3
    assert len(list(read_records(source, str(tmp_path), "test"))) == 1
    with pytest.raises(DatasetError, match="no file of the split 'validation'"):
        list(read_records(source, str(tmp_path), "validation"))
    write_table(tmp_path / "eval_2.parquet", rows()[:2])
    assert len(list(read_records(source, str(tmp_path), "eval_2"))) == 2


def test_bad_places_are_named(tmp_path: Path) -> None:
    source = SOURCES["gsm8k"]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "q", "answer": "#### 1"}\n{oops\n')
    with pytest.raises(DatasetError, match=r"bad.jsonl, line 2: not valid JSON"):
        list(read_records(source, str(bad)))
    with pytest.raises(DatasetError, match="no such file"):
        list(read_records(source, "./nothing/here.jsonl"))
    with pytest.raises(DatasetError, match="no .parquet"):
        (tmp_path / "empty").mkdir()
        list(read_records(source, str(tmp_path / "empty")))
    with pytest.raises(DatasetError, match="data set 'apple' is unknown"):
        find_source("apple")


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"id": 1, "statement": "s", "numbers": [1, "2"]}', "numbers"),
        ('{"id": 1, "statement": "s", "preamble": 3}', "preamble"),
        ('{"id": 1, "statement": "s", "language": "cobol"}', "language"),
        ('{"id": 1, "statement": "s", "checker": {"type": "float", "tolerance": "1e-3"}}', "tolerance"),
    ],
)
def test_new_fields_are_validated(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(DatasetError, match=f"line 1: field '{reason}'"):
        read_problems(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "limits",
    [
        *('"time_limit": 0', '"time_limit": NaN', '"time_limit": Infinity', '"time_limit": 1e300'),
        *('"memory_limit": 0', '"memory_limit": -1', '"memory_limit": 1' + "0" * 30),
        *('"memory_limit_mb": Infinity', '"memory_limit_mb": NaN', '"memory_limit_mb": 0'),
    ],
)
def test_limits_that_no_machine_can_keep(tmp_path: Path, limits: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"id": 1, "statement": "s", {limits}}}')
    with pytest.raises(DatasetError, match=f"line 1: {limits.split(chr(34))[1]} "):
        read_problems(tmp_path / "p.jsonl")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"[" * 100_000, b"1" * 5000], ids=["bytes", "nested", "number"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, data: bytes) -> None:
    for name in ("p.jsonl", "p.jsonl.gz", "p.json", "p.parquet", "p.arrow"):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DatasetError, match=name):
            list(read_records(SOURCES["gsm8k"], str(path)))
    with pytest.raises(DatasetError, match="p.jsonl, line 1"):
        read_problems(tmp_path / "p.jsonl")
    assert not is_prepared(tmp_path / "p.jsonl")


def test_bytes_that_are_no_utf_8_survive_a_file(tmp_path: Path) -> None:
    problem = Problem("a", "Ü", (Test("\udcff", "o"),))
    write_problems(tmp_path / "p.jsonl", [problem])
    assert read_problems(tmp_path / "p.jsonl") == [problem]


def test_every_field_survives_a_file(tmp_path: Path) -> None:
    problem = Problem(
        "a",
        "s",
        (Test("i", "o"),),
        numbers=(1, 2),
        solution="x",
        preamble="int f(){",
        tests_are_code=True,
        license="MIT",
    )
    write_problems(tmp_path / "p.jsonl", [problem])
    assert read_problems(tmp_path / "p.jsonl") == [problem]
