"""What is set before the libraries are imported."""

from __future__ import annotations

import sys

import pytest

from pipeline import environment
from pipeline.environment import OtherKernels, prepare_environment


@pytest.mark.parametrize("without", [True, False])
def test_kernels_of_other_cpus_are_not_loaded(monkeypatch: pytest.MonkeyPatch, without: bool) -> None:
    monkeypatch.setattr(environment, "_is_x86_without_bf16", lambda: without)
    finder = OtherKernels()
    assert (finder.find_spec("vllm._C") is not None) == without
    assert finder.find_spec("vllm._C_AVX512") is None and finder.find_spec("vllm") is None


def test_the_finder_is_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: False)
    for _ in range(2):
        prepare_environment()
    assert sum(isinstance(finder, OtherKernels) for finder in sys.meta_path) == 1
