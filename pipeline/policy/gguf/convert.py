"""A GGUF file as a folder for transformers: bfloat16 safetensors, config and tokenizer, made once, kept in the cache.

The key is what the file and the tokenizer next to it hold, not where they are or when they were written. A folder
appears whole or not at all; of two processes that want the same one, the second waits for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.policy.gguf.architecture import (
    EMBEDDING,
    OUTPUT,
    check_architecture,
    dequantised,
    model_config,
    parameter_places,
)
from pipeline.policy.gguf.header import Header, read_header
from pipeline.policy.gguf.tokenizer import files_beside, load_tokenizer, named_token, settle_ends
from pipeline.policy.weights import write_weights
from pipeline.progress import Bar
from storage.cache import cache_root
from storage.files import write_json

FORM = 1  # of the folders in the cache; raised when they are made in another way


def converted(path: Path) -> Path:
    """The folder of a GGUF file, from the cache or made now.

    Raises `ConfigError` for a file that `check_architecture` or `load_tokenizer` refuses, and where the cache has no
    room or cannot be written.
    """
    header = read_header(path)
    check_architecture(header)
    folder = cache_root() / f"gguf-{content_key(path)}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if not folder.is_dir():
                _remove_leftovers(folder.parent)
                _make(header, folder)
    except OSError as error:
        why = f"cannot be converted in {folder.parent} ({error.strerror or error})"
        raise header.error(f"{why}; set TINYLORA_CACHE to a writable folder") from None
    return folder


def content_key(path: Path) -> str:
    """A hash of what the file and its tokenizer's files hold; a second or two for a gigabyte."""
    digest = hashlib.blake2b(str(FORM).encode(), digest_size=16)
    for file in [path, *files_beside(path)]:
        with file.open("rb") as stream:
            digest.update(f"{file.suffix}{file.name if file != path else ''}".encode())
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


@contextmanager
def _lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Held by one process at a time; the kernel frees it, however its owner ends. Raises `BlockingIOError` where it is
    held and we do not wait."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _remove_leftovers(root: Path) -> None:
    """Delete what killed conversions, of whatever file, have left: gigabytes that nobody would miss. One that still
    runs holds its folder's lock."""
    for partial in root.glob(_partial(root / "gguf-*").name):
        with suppress(OSError), _lock(root / partial.stem.removeprefix("."), wait=False):
            shutil.rmtree(partial, ignore_errors=True)


def _make(header: Header, folder: Path) -> None:
    config = model_config(header)
    names = parameter_places(header)
    if not config["tie_word_embeddings"]:
        names[OUTPUT] = ("lm_head.weight", names[EMBEDDING][1])
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        (partial / "tokenizer").mkdir(parents=True)
        tokenizer = load_tokenizer(header, partial / "tokenizer")
        ends, named = settle_ends(header, tokenizer), named_token(header, "eos")
        if named not in (None, tokenizer.eos_token):
            used = f"its chat template ends answers with {tokenizer.eos_token}, which is used"
            print(f"{header.path} names {named} as its end; {used}", file=sys.stderr)
        shutil.rmtree(partial / "tokenizer")
        tokenizer.save_pretrained(partial)
        tokens = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
        write_json(partial / "config.json", config | tokens | {"eos_token_id": ends[0]})
        write_json(partial / "generation_config.json", tokens | {"eos_token_id": ends})
        _write(header, names, partial)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(header: Header, names: dict[str, tuple[str, tuple[int, ...]]], folder: Path) -> None:
    import torch

    sources = {ours: name for name, (ours, _) in names.items()}
    output = header.tensors.get(OUTPUT)
    if output is not None and OUTPUT not in names and output.bits > header.tensors[EMBEDDING].bits:
        sources[names[EMBEDDING][0]] = OUTPUT  # the same matrix, kept more exactly
    weights = {ours: torch.empty(shape, dtype=torch.bfloat16, device="meta") for ours, shape in names.values()}
    size, free = sum(weight.nbytes for weight in weights.values()), shutil.disk_usage(folder).free
    if free < size:
        why = f"takes {size / 1e9:.1f} GB in {folder.parent}, where {free / 1e9:.1f} are free"
        raise header.error(f"{why}; set TINYLORA_CACHE to a folder on a larger disk")
    bar = Bar(f"converting {header.path.name}", size, "bytes", scaled=True)

    def tensor(ours: str) -> Any:
        name = sources[ours]
        values = torch.from_numpy(_in_order(header, name, dequantised(header, header.tensors[name]))).bfloat16()
        if not values.isfinite().all():
            raise header.error(f"{name} holds what is no number, or none that bfloat16 has; download it again")
        bar.done(weights[ours].nbytes)
        return values

    try:
        write_weights(weights, tensor, folder)
    finally:
        bar.close()


def _in_order(header: Header, name: str, values: Any) -> Any:
    """Rows as transformers has them: in llama.cpp a Llama rotates neighbours in a head, in transformers its halves."""
    import numpy as np

    part = name.split(".")[-2]
    if header.architecture == "llama" and part in ("attn_q", "attn_k"):
        heads = header.get("attention.head_count")
        if part == "attn_k":
            heads = header.get("attention.head_count_kv", heads)
        values = values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
    return np.array(values)  # writable, and no view of the file
