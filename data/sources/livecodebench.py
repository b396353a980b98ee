"""livecodebench/code_generation_lite: read from its JSON-lines files, since the hub's table is a script.

Private tests are JSON, or base64 of zlib of a pickle of JSON text. The pickle is opened by an unpickler that refuses
every global, so that it can hold plain texts and nothing else."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from typing import Any

from data.sources.base import Loaded, Record, Skip, Source, decoded, distinct, joined, optional, text
from rewards.problem import Problem, Test

MAX_PRIVATE_BYTES = 512 * 1024 * 1024  # of unpacked tests


class _TextUnpickler(pickle.Unpickler):
    """Builds texts, numbers and containers only."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}; only plain text is allowed")

    def persistent_load(self, identifier: Any) -> Any:
        raise pickle.UnpicklingError("the pickle refers to external data")


def private_tests(packed: str) -> Any:
    """The decoded list of private tests. Raises `Skip` for anything that is not JSON, plain or packed as described."""
    try:
        return json.loads(packed)
    except (ValueError, RecursionError):
        pass
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(packed, validate=True), MAX_PRIVATE_BYTES)
        if unpacker.unconsumed_tail:
            raise Skip(f"the private tests unpack to more than {MAX_PRIVATE_BYTES} bytes")
        value = _TextUnpickler(io.BytesIO(data)).load()
        return json.loads(value) if isinstance(value, str) else value
    except Skip:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise Skip(f"private tests cannot be unpacked ({error})") from None


def convert(record: Record) -> Loaded:
    public = decoded(text(record, "public_test_cases"), "public_test_cases")
    private = private_tests(text(record, "private_test_cases"))
    metadata = decoded(record.get("metadata") or {}, "metadata")
    is_function = optional(record, "starter_code").strip() or (isinstance(metadata, dict) and metadata.get("func_name"))
    if is_function or any(t.get("testtype") == "functional" for t in [*public, *private]):
        raise Skip("asks for a Python function")
    tests = [Test(joined(t["input"]), joined(t["output"]), public=True) for t in public]
    tests += [Test(joined(t["input"]), joined(t["output"])) for t in private]
    if not tests:
        raise Skip("no tests")
    title = optional(record, "question_title")
    content = text(record, "question_content").replace("\r\n", "\n").strip()
    return Loaded(
        Problem(
            id=f"livecodebench/{text(record, 'question_id')}",
            statement=f"# {title}\n\n{content}" if title else content,
            tests=distinct(tests),
            source=optional(record, "platform") or "livecodebench",
            difficulty=optional(record, "difficulty"),
        )
    )


SOURCE = Source(
    "livecodebench", convert, hub="livecodebench/code_generation_lite", hub_files="test*.jsonl", split="test"
)
