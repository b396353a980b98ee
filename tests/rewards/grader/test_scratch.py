"""Scratch folders and the cache: where they are, and who removes them."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from rewards.errors import GraderError
from rewards.grader import scratch as storage
from rewards.grader.scratch import ScratchFolder, grader_cache, scratch_root, sweep


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


def test_a_cache_beside_scratch_folders_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither /dev/shm nor a home can be used, both are in the temporary folder."""
    monkeypatch.setattr(storage, "SHARED_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TINYLORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    kept = grader_cache()
    assert kept.parent == scratch_root()
    for prefix in ("grader", "headers", "probe"):
        sweep(prefix)
    assert kept.is_dir()


def test_a_folder_is_not_swept_before_it_is_locked(own_scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def late(lock: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            sweep("grader")  # by another process, just now
        flock(lock, how)

    monkeypatch.setattr(storage.fcntl, "flock", late)
    with ScratchFolder("grader") as folder:
        assert folder.is_dir() and folder.name.startswith("grader-")
    assert not list(own_scratch.iterdir())


def test_a_place_that_dead_owners_have_filled_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, other = tmp_path / "full", tmp_path / "other"
    full.mkdir()
    other.mkdir()
    monkeypatch.setattr(storage, "SHARED_MEMORY", full)
    monkeypatch.setattr(storage.tempfile, "tempdir", str(other))
    dead = scratch_root() / "grader-dead"
    dead.mkdir()
    monkeypatch.setattr(storage, "free_bytes", lambda place: 0 if dead.exists() and place == full else 1 << 30)
    assert scratch_root().parent == other
    sweep("grader")
    assert scratch_root().parent == full


def test_a_temporary_folder_is_not_needed(own_scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.tempfile, "tempdir", None)
    monkeypatch.setattr(storage.tempfile, "_candidate_tempdir_list", list)  # as where none can be written
    assert scratch_root() == own_scratch
    monkeypatch.setattr(storage, "SHARED_MEMORY", own_scratch / "missing")
    with pytest.raises(GraderError, match="no scratch folder"):
        scratch_root()


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


def test_the_graders_part_of_the_cache_is_private_in_a_shared_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TINYLORA_CACHE", str(tmp_path))
    tmp_path.chmod(0o775)
    assert grader_cache().parent == tmp_path and grader_cache().stat().st_mode & 0o077 == 0
    assert tmp_path.stat().st_mode & 0o777 == 0o775
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYLORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(GraderError, match="set TINYLORA_CACHE"):
        grader_cache()
