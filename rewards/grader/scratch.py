"""Where the grader keeps files: a cache folder on disk, and scratch folders on tmpfs that are gone after use.

grader_cache()  a folder in the project's cache that only this user can enter: the runner, names of the lean header
scratch_root()  /dev/shm/tinylora-coder-<uid>, or the temporary folder where /dev/shm is missing, full or noexec
ScratchFolder   a locked folder in there; the lock is released by the kernel, however its owner ended, so that
                `sweep` can tell a dead owner's folder from a living one's
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rewards.errors import GraderError
from storage.cache import NAME, cache_root, private

_NEEDED_BYTES = 640 * 1024 * 1024  # some precompiled headers and the outputs of a few programs
SHARED_MEMORY = Path("/dev/shm")
_NAME = f"{NAME}-{os.getuid()}"


@contextmanager
def _grader_errors() -> Iterator[None]:
    """Turns an `OSError` about a folder into a `GraderError`."""
    try:
        yield
    except OSError as error:
        raise GraderError(f"{error}; set TINYLORA_CACHE and TMPDIR to folders of your own") from None


def grader_cache() -> Path:
    """The folder for programs that the grader runs: nobody else may write there."""
    with _grader_errors():
        # Named unlike a scratch folder, beside which it may stand: in the temporary folder.
        return private(cache_root() / f"programs-{os.getuid()}")


def _bases() -> Iterator[Path]:
    """Where scratch folders may be, the best place first."""
    yield SHARED_MEMORY
    with suppress(FileNotFoundError):  # there may be no temporary folder, and no need for one
        yield Path(tempfile.gettempdir())


def scratch_root() -> Path:
    """The folder for scratch folders: tmpfs when it has room and lets programs run."""
    for base in _bases():
        try:
            info = os.statvfs(base)
        except OSError:
            continue
        usable = not info.f_flag & os.ST_NOEXEC and os.access(base, os.W_OK | os.X_OK)
        if usable and free_bytes(base) >= _NEEDED_BYTES:
            with _grader_errors():
                return private(base / _NAME)
    raise GraderError("no scratch folder: /dev/shm and TMPDIR both lack 640 MB of space or forbid programs (noexec)")


def _roots() -> Iterator[Path]:
    """The folders that `scratch_root` has made, now or when other places were full."""
    for base in _bases():
        with suppress(OSError):  # somebody else's
            if (base / _NAME).is_dir():
                yield private(base / _NAME)


def free_bytes(folder: Path) -> int:
    """Free space of the file system that holds a folder."""
    info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize


def file_digest(path: Path) -> str:
    """Half of the SHA-256 of a file's content; part of the name of a file that must be whole to be used."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:24]


class ScratchFolder:
    """A folder in `root` (default: `scratch_root()`) that is removed on exit; its lock tells `sweep` that the owner
    lives."""

    def __init__(self, prefix: str, root: Path | None = None) -> None:
        made = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=root or scratch_root()))
        self._lock = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = made.rename(made.with_name(made.name[1:]))  # locked, so that `sweep` may find it

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep(prefix: str, root: Path | None = None) -> None:
    """Remove the scratch folders whose owner died without cleaning up: from all roots, for they may have filled one."""
    for folder in [folder for place in ([root] if root else _roots()) for folder in place.glob(f"{prefix}-*")]:
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # removed meanwhile
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(lock)
