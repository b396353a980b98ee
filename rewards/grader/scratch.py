"""Where the grader keeps files: a cache folder on disk, and scratch folders on tmpfs that are gone after use.

cache_root()    $XDG_CACHE_HOME/tinylora-coder or ~/.cache/tinylora-coder: the runner, names of the lean header
scratch_root()  /dev/shm/tinylora-coder-<uid>, or the temporary folder where /dev/shm is missing, full or noexec
ScratchFolder   a locked folder in there; the lock is released by the kernel, however its owner ended, so that
                `sweep` can tell a dead owner's folder from a living one's
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from rewards.errors import GraderError

_NAME = "tinylora-coder"
_NEEDED_BYTES = 640 * 1024 * 1024  # some precompiled headers and the outputs of a few programs
SHARED_MEMORY = Path("/dev/shm")


def _private(folder: Path) -> Path:
    """Create a folder that only this user can enter, or refuse one that somebody else made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise GraderError(f"{folder} belongs to another user; remove it or set TMPDIR and XDG_CACHE_HOME")
    if info.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def cache_root() -> Path:
    """The folder for things that are costly to make again; in the temporary folder where home is read-only."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    with suppress(OSError):
        folder = _private(Path(home) / _NAME)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    return _private(Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}")


def scratch_root() -> Path:
    """The folder for scratch folders: tmpfs when it has room and lets programs run."""
    for base in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        try:
            info = os.statvfs(base)
        except OSError:
            continue
        usable = not info.f_flag & os.ST_NOEXEC and os.access(base, os.W_OK | os.X_OK)
        if usable and free_bytes(base) >= _NEEDED_BYTES:
            return _private(base / f"{_NAME}-{os.getuid()}")
    raise GraderError("no scratch folder: /dev/shm and TMPDIR both lack 640 MB of space or forbid programs (noexec)")


def free_bytes(folder: Path) -> int:
    """Free space of the file system that holds a folder."""
    info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize


class ScratchFolder:
    """A folder in `root` (default: `scratch_root()`) that is removed on exit; its lock tells `sweep` that the owner
    lives."""

    def __init__(self, prefix: str, root: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=root or scratch_root()))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep(prefix: str, root: Path | None = None) -> None:
    """Remove the scratch folders whose owner died without cleaning up."""
    for folder in (root or scratch_root()).glob(f"{prefix}-*"):
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
