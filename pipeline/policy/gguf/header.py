"""The header of a GGUF file: its metadata, and where its tensors lie. No tensor is read.

Own code, although the package `gguf` has a reader: that one makes numpy arrays of every token of the vocabulary and
takes ten seconds for a header that is read here in a third of one. The format is llama.cpp's, versions 2 and 3, little
endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def refused(path: Path, why: str) -> ConfigError:
    return ConfigError(f"--model {path}: {why}")


@dataclass(frozen=True)
class TensorPlace:
    """`shape` in torch's order; `kind` is ggml's number of the number format; `start` and `size` are bytes of the
    file."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int

    @property
    def bits(self) -> float:
        """Of one element."""
        return 8 * self.size / math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """`metadata` by GGUF's keys, arrays as lists; `tensors` by GGUF's names."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace]

    @property
    def architecture(self) -> str:
        return self.metadata["general.architecture"]

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture's own: `get("block_count")` is `llama.block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: float | None = None, kind: type = int) -> Any:
        """As `get`, of a number above 0; kind: int or float. Raises `ConfigError` for another value, and where there is
        neither one nor a default."""
        name = f"{self.architecture}.{key}"
        value: Any = self.get(key, default)
        if value is None:
            raise self.error(f"its header lacks {name}; convert the model again")
        if isinstance(value, list):
            raise self.error(f"its layers differ in {name}, which is not supported")
        if type(value) not in (kind, int) or not 0 < value < math.inf:
            raise self.error(f"its header has {name} = {value!r}; convert the model again")
        return value

    def error(self, why: str) -> ConfigError:
        """The refusal of this file, to be raised."""
        return refused(self.path, why)


def gguf_in(folder: Path) -> Path | None:
    """The one GGUF file of a folder that holds no weights for transformers, None where there is no GGUF file.

    Raises `ConfigError` where there are several.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    if not found or any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4]) + (", ..." if len(found) > 4 else "")
        raise ConfigError(f"--model {folder}: holds {len(found)} GGUF files ({names}); name one of them")
    return found[0]


def read_header(path: Path) -> Header:
    """Raises `ConfigError` for a file that is not GGUF, is cut short, or is one part of several."""
    try:
        info = path.stat()
        return _read_header(path, info.st_size, info.st_mtime_ns)
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror})") from None


@cache
def _read_header(path: Path, size: int, modified: int) -> Header:
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] != MAGIC:
            raise refused(path, "not a GGUF file (it does not start with 'GGUF'); give a folder, or a .gguf file")
        try:
            (version,) = struct.unpack_from("<I", start, 4)
            if version not in VERSIONS:
                raise refused(path, f"GGUF version {version} is not supported, only 2 and 3; convert it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _parse(path, data)
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError, RecursionError, ZeroDivisionError):
            raise refused(path, "its header is damaged or truncated; download it again") from None
    end = max(place.start + place.size for place in header.tensors.values())
    if end > size:
        raise refused(path, f"truncated: {size:,} of {end:,} bytes are present; download it again")
    return header


def _parse(path: Path, data: mmap.mmap) -> Header:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor = _Cursor(data, 8)
    tensor_count, field_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(field_count)}
    parts, alignment = metadata.get("split.count", 0), metadata.get("general.alignment", 32)
    if not isinstance(parts, int) or not isinstance(alignment, int) or alignment < 1:
        raise struct.error("numbers of another type")
    if parts > 1:
        raise refused(path, f"one of {parts} parts; join them with llama-gguf-split --merge")
    listed = []
    for _ in range(tensor_count):
        name, dimensions = cursor.string(), cursor.scalar("I")
        shape = tuple(reversed([cursor.scalar("Q") for _ in range(dimensions)]))
        listed.append((name, shape, cursor.scalar("I"), cursor.scalar("Q")))
    if not listed or not isinstance(metadata.get("general.architecture"), str):
        raise refused(path, "contains no model (no tensors, or no general.architecture); give the file of the weights")
    origin = -(-cursor.position // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in listed:
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError:
            raise refused(path, f"{name} is in the unknown number format {kind}; take Q8_0 or Q4_K_M") from None
        if not shape or 0 in shape or shape[-1] % block:
            raise struct.error("rows that are no whole blocks")
        tensors[name] = TensorPlace(shape, kind, origin + offset, math.prod(shape) // block * block_bytes)
    return Header(path, metadata, tensors)


class _Cursor:
    """Reads values one after another. Raises `struct.error` at the end of the data."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self.data, self.position = data, position

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.data, self.position)
        self.position += struct.calcsize("<" + form)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise struct.error("a string ends beyond the end of the file")
        return self.data[start : self.position].decode()

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise struct.error(f"unknown type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if count > len(self.data):
            raise struct.error("an array ends beyond the end of the file")
        return [self.value(inner) for _ in range(count)]
