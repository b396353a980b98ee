"""Scratch folders and the cache: where they are, and who removes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.errors import GraderError
from rewards.grader import scratch as storage
from rewards.grader.scratch import ScratchFolder, cache_root, scratch_root, sweep


@pytest.fixture
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for scratch folders that no other process uses."""
    monkeypatch.setattr(storage, "SHARED_MEMORY", tmp_path)
    return scratch_root()


def test_only_dead_owners_folders_are_swept(own_scratch: Path) -> None:
    (own_scratch / "grader-dead").mkdir()
    (own_scratch / "grader-dead" / "file").touch()
    with ScratchFolder("grader") as alive:
        sweep("grader")
        assert list(own_scratch.iterdir()) == [alive]
    assert not list(own_scratch.iterdir())


def test_the_scratch_folder_is_private(own_scratch: Path) -> None:
    assert own_scratch.stat().st_mode & 0o077 == 0
    own_scratch.chmod(0o755)
    assert scratch_root().stat().st_mode & 0o077 == 0


def test_a_planted_link_is_refused(tmp_path: Path, own_scratch: Path) -> None:
    own_scratch.rmdir()
    (tmp_path / "elsewhere").mkdir()
    own_scratch.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GraderError, match="another user"):
        scratch_root()


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_root().is_dir()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = cache_root()
    monkeypatch.setattr(storage.os, "access", lambda path, mode: Path(path) != before)  # as on a read-only disk
    assert cache_root() != before and cache_root().is_dir()
