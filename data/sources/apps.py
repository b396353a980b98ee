"""codeparrot/apps (MIT) and BAAI/TACO (Apache-2.0 and others): one shape, `input_output` and `solutions` as JSON text.

Also reads the original archive of APPS, a folder for each problem. Problems that ask for a Python function are skipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.sources.base import (
    Loaded,
    Record,
    Skip,
    Source,
    columns_to_tests,
    decoded,
    distinct,
    memory_bytes,
    optional,
    seconds,
    strip_fence,
    text,
)
from rewards.problem import Problem

MAX_SOLUTIONS = 3


def _convert(record: Record, name: str, license: str) -> Loaded:
    statement = text(record, "question").replace("\r\n", "\n").strip()
    packed = record.get("input_output")
    tests: Any = decoded(packed, "input_output") if packed else {}
    if not isinstance(tests, Mapping) or not tests.get("inputs"):
        raise Skip("no tests")
    if tests.get("fn_name") or optional(record, "starter_code").strip():
        raise Skip("asks for a Python function")
    solutions = decoded(record.get("solutions") or "[]", "solutions")
    number = record.get("problem_id", record.get("id"))
    identifier = hashlib.sha256(statement.encode()).hexdigest()[:12] if number is None else str(number)
    difficulty = optional(record, "difficulty")
    return Loaded(
        Problem(
            id=f"{name}/{identifier}",
            statement=statement,
            tests=distinct(columns_to_tests(tests["inputs"], tests["outputs"])),
            time_limit=seconds(record.get("time_limit")),
            memory_limit=memory_bytes(record.get("memory_limit")),
            source=optional(record, "source") or name,
            difficulty="" if difficulty.startswith("UNKNOWN") else difficulty,
            license=license,
        ),
        tuple(("python", strip_fence(s)) for s in solutions[:MAX_SOLUTIONS] if isinstance(s, str)),
    )


def convert_apps(record: Record) -> Loaded:
    return _convert(record, "apps", "MIT")


def convert_taco(record: Record) -> Loaded:
    return _convert(record, "taco", "Apache-2.0, with parts of other licences")


def read_archive(folder: Path) -> Iterator[tuple[str, Record]]:
    """Folders with question.txt and input_output.json, at any depth."""
    for question in sorted(folder.rglob("question.txt")):
        place = question.parent
        record: dict[str, Any] = {"problem_id": place.name, "question": question.read_text(encoding="utf-8")}
        for field, name in (("input_output", "input_output.json"), ("solutions", "solutions.json")):
            if (place / name).is_file():
                record[field] = (place / name).read_text(encoding="utf-8")
        if (place / "starter_code.py").is_file():
            record["starter_code"] = (place / "starter_code.py").read_text(encoding="utf-8")
        if (place / "metadata.json").is_file():
            record["difficulty"] = json.loads((place / "metadata.json").read_text()).get("difficulty")
        yield str(place), record


APPS = Source("apps", convert_apps, hub="codeparrot/apps", read_folder=read_archive)
TACO = Source("taco", convert_taco, hub="BAAI/TACO")
