"""Where things are kept that are costly to make again: factors of models, converted models, the grader's runner."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

NAME = "tinylora-coder"


def private(folder: Path) -> Path:
    """Create a folder that only this user can enter. Raises `PermissionError` for one that somebody else made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if info.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def cache_root() -> Path:
    """$TINYLORA_CACHE, which may not exist yet; else tinylora-coder in the user's cache folder ($XDG_CACHE_HOME or
    ~/.cache), and where that cannot be written, in the temporary folder."""
    given = os.environ.get("TINYLORA_CACHE")
    if given:
        return Path(given).absolute()  # graders work in other folders
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    with suppress(OSError):
        folder = private(Path(home) / NAME)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    return private(Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}")
