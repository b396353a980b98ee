"""The cache: one folder for all that is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters.factors import cached_factors
from rewards.grader.runner import build_runner
from rewards.grader.sandbox import choose_sandbox
from storage import cache
from storage.cache import cache_root


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYLORA_CACHE")


def test_one_variable_moves_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLORA_CACHE", str(tmp_path))
    *_, factors = cached_factors({"a": torch.nn.Linear(8, 8)}, rank=2)
    assert tmp_path in build_runner().parents and tmp_path in factors.parents


def test_a_cache_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYLORA_CACHE", "cache")
    assert choose_sandbox()[0].probe() == []


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_root().is_dir()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = cache_root()
    assert before.parent == tmp_path
    monkeypatch.setattr(cache.os, "access", lambda path, mode: Path(path) != before)  # as on a read-only disk
    assert cache_root() != before and cache_root().is_dir()
