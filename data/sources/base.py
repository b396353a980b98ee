"""What a loader is: a function from one record of a data set, as published, to a `Problem` with its known solutions.

Helpers here normalise what every data set spells differently: limits to float seconds and bytes, tests to pairs of
texts."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rewards.problem import DEFAULT_MEMORY_LIMIT, DEFAULT_TIME_LIMIT, MEGABYTE, Problem, Test

MAX_TIME_LIMIT = 10.0  # seconds; a longer one is a mistake of the record, or too slow for rollouts

Record = Mapping[str, Any]


class Skip(ValueError):
    """A record that cannot become a problem, with the reason in a few words."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A problem and the solutions that its data set declares right, as (language, source)."""

    problem: Problem
    solutions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """One data set: where it is, and how its records are read.

    `convert` raises `Skip` for a record that cannot be used. `hub` is the data set's id, `config` its default
    configuration. `hub_files` names plain files in the hub's repository, where there is no table to load.
    `read_folder`, for sets that are kept as a folder for each problem, yields (name, record) for a folder that holds
    them and nothing for any other. `generate` makes (split, count, seed) problems for the location "generated"."""

    name: str
    convert: Callable[[Record], Loaded]
    hub: str = ""
    config: str | None = None
    hub_files: str = ""
    split: str = "train"
    read_folder: Callable[[Path], Iterator[tuple[str, Record]]] | None = None
    generate: Callable[[Literal["train", "held_out"], int, int], list[Problem]] | None = None


def text(record: Record, *names: str) -> str:
    """The first of the named fields that is a text with content. Raises `Skip` where none is."""
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            return value
    raise Skip(f"field {names[0]!r} is missing or empty")


def optional(record: Record, name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""


def decoded(value: Any, field: str) -> Any:
    """A field that holds JSON text, or Python literals in some releases, or is already decoded."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Skip(f"field {field!r} is neither JSON nor a Python literal") from None


def joined(value: Any) -> str:
    """A test's input or output as text; some sets keep a list of lines."""
    if isinstance(value, list | tuple):
        return "\n".join(joined(part) for part in value)
    if isinstance(value, str):
        return value.replace("\r\n", "\n")
    if value is None:
        raise Skip("a test has no input or no output")
    return str(value)


def columns_to_tests(inputs: Sequence[Any], outputs: Sequence[Any], public: bool = False) -> tuple[Test, ...]:
    """Tests kept as two columns. Raises `Skip` when they differ in length: pairs cannot be told then."""
    if len(inputs) != len(outputs):
        raise Skip(f"{len(inputs)} test inputs but {len(outputs)} outputs")
    return tuple(Test(joined(i), joined(o), public) for i, o in zip(inputs, outputs, strict=True))


def rows_to_tests(rows: Iterable[Record] | None, public: bool = False) -> tuple[Test, ...]:
    """Tests kept as objects with `input` and `output`."""
    return tuple(Test(joined(row["input"]), joined(row["output"]), public) for row in rows or ())


def distinct(tests: Iterable[Test]) -> tuple[Test, ...]:
    """Without repeated inputs; the first of them stays."""
    found: dict[str, Test] = {}
    for test in tests:
        found.setdefault(test.input.strip(), test)
    return tuple(found.values())


_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)", re.ASCII)
_TIME_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0}
_TIME_UNITS |= {"ms": 1e-3, "millisecond": 1e-3, "milliseconds": 1e-3}
_MEMORY_UNITS = {"": MEGABYTE, "b": 1, "byte": 1, "bytes": 1}
_MEMORY_UNITS |= {"k": 1000, "kb": 1000, "kib": 1024, "kilobyte": 1000, "kilobytes": 1000}
_MEMORY_UNITS |= {"m": MEGABYTE, "mb": MEGABYTE, "mib": 1 << 20, "megabyte": MEGABYTE, "megabytes": MEGABYTE}
_MEMORY_UNITS |= dict.fromkeys(("g", "gb", "gigabyte", "gigabytes"), 1000 * MEGABYTE) | {"gib": 1 << 30}


def seconds(value: Any) -> float:
    """A time limit as float seconds: a number of seconds, '2.0 seconds', or {seconds, nanos}. Unknown: the default."""
    if isinstance(value, Mapping):
        value = float(value.get("seconds") or 0) + float(value.get("nanos") or 0) * 1e-9
    elif isinstance(value, str):
        found = _NUMBER.search(value)
        value = float(found[1]) * _TIME_UNITS.get(found[2].lower(), 1.0) if found else 0.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        return DEFAULT_TIME_LIMIT
    return min(float(value), MAX_TIME_LIMIT)


def memory_bytes(value: Any, unit: int = 1) -> int:
    """A memory limit as bytes: a number of `unit` bytes, or '256 megabytes'. Unknown: the default."""
    if isinstance(value, str):
        found = _NUMBER.search(value)
        value = float(found[1]) * _MEMORY_UNITS.get(found[2].lower(), 0) if found else 0
        unit = 1
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        return DEFAULT_MEMORY_LIMIT
    return int(value * unit)


def strip_fence(source: str) -> str:
    """Code without the ```lang fence that some sets wrap it in."""
    found = re.fullmatch(r"\s*```[^\n]*\n(.*?)\n?```\s*", source, re.DOTALL)
    return found[1] + "\n" if found else source
