"""open-r1/codeforces (CC BY 4.0). Problems that are interactive, use files, or need a checker of their own are skipped.

Only official tests are read; the set's generated tests are separate files of gigabytes.
"""

from __future__ import annotations

from data.sources.base import (
    Loaded,
    Record,
    Skip,
    Source,
    distinct,
    memory_bytes,
    optional,
    rows_to_tests,
    seconds,
    text,
)
from rewards.problem import MEGABYTE, Problem

SECTIONS = (("input_format", "Input"), ("output_format", "Output"), ("note", "Note"))


def convert(record: Record) -> Loaded:
    if optional(record, "input_mode") not in ("", "stdio"):
        raise Skip("reads or writes files")
    if optional(record, "interaction_format"):
        raise Skip("is interactive")
    if record.get("generated_checker"):
        raise Skip("needs its own checker")
    parts = [text(record, "description").strip()]
    title = optional(record, "title")
    if title:
        parts.insert(0, f"# {title}")
    parts += [f"## {heading}\n{record[name].strip()}" for name, heading in SECTIONS if optional(record, name).strip()]
    tests = rows_to_tests(record.get("examples"), public=True) + rows_to_tests(record.get("official_tests"))
    cut = [t for t in tests if t.input.rstrip().endswith("...") or t.output.rstrip().endswith("...")]
    rating = record.get("rating")
    labels = [letter for letter in optional(record, "index")[:1] if letter.isalpha()]
    return Loaded(
        Problem(
            id=f"codeforces/{text(record, 'id')}",
            statement="\n\n".join(parts).replace("\r\n", "\n"),
            tests=distinct(test for test in tests if test not in cut),
            time_limit=seconds(record.get("time_limit")),
            memory_limit=memory_bytes(record.get("memory_limit"), MEGABYTE),
            source="codeforces",
            difficulty=" ".join([*labels, str(int(rating))] if rating else labels),
            license="CC BY 4.0",
        )
    )


SOURCE = Source("open_r1_codeforces", convert, hub="open-r1/codeforces", config="default")
