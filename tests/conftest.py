"""Shared fixtures: the environment of the libraries, a throw-away cache, and a tiny random model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.environment import prepare_environment
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
