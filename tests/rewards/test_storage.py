"""Scratch folders, the shared precompiled headers, and who removes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rewards import storage
from rewards.errors import GraderError
from rewards.header import FULL, LEAN, STREAM, identifiers, lean_names, lease_headers
from rewards.storage import ScratchFolder, cache_root, scratch_root, sweep
from rewards.toolchains import find_toolchain


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


def test_the_last_lease_removes_the_headers(own_scratch: Path) -> None:
    toolchain = find_toolchain("cpp")
    first, second = lease_headers(toolchain), lease_headers(toolchain)
    assert first.folder == second.folder
    assert {path.name for path in first.folder.iterdir()} == {FULL, LEAN, STREAM}
    first.release()
    first.release()  # twice is harmless
    assert (second.folder / FULL / "bits" / "stdc++.h.gch").is_file()
    second.release()
    assert not list(own_scratch.iterdir())


def test_names_that_only_the_full_header_knows(own_scratch: Path) -> None:
    with lease_headers(find_toolchain("cpp")) as lease:
        names = lean_names(lease.folder)
    assert names
    assert {"mutex", "regex", "thread", "async", "lock", "filesystem", "pmr", "this_thread", "_GLIBCXX_MUTEX"} <= names
    ordinary = (
        "vector map sort priority_queue cin string line path add limit int class lower_bound gcd __gcd unordered_map"
    )
    assert names.isdisjoint(
        [*ordinary.split(), "__builtin_popcount", "__int128", "cerr", "chrono", "mt19937", "bitset"]
    )
    assert names.isdisjoint(identifiers("// a mutex\nstd::string s = \"regex\"; char c = 'a';"))


def test_a_missing_header_is_said(tmp_path: Path, own_scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler without bits/stdc++.h, such as one with another standard library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def fail(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "fatal error: bits/stdc++.h: No such file or directory")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(GraderError, match="cannot precompile bits/stdc"):
        lease_headers(find_toolchain("cpp"))
