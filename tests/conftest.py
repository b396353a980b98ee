"""Shared fixtures: the environment of the libraries, a throw-away cache, and a tiny random model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.environment import prepare_environment
from tests.forked import Forks
from tests.tiny_model import save_tiny_model

prepare_environment()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("tests", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("tests")


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["TINYLORA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with whole commands come first: short ones fill up what time is left at the end, where two run at once."""
    long = {item.path for item in items if item.get_closest_marker("integration")}
    items.sort(key=lambda item: item.path not in long)
