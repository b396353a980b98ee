"""Environment variables that torch, vLLM, Unsloth and the hub read when they are imported.

Call `prepare_environment` before the first of those imports. Variables that the user has set are left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from platform import machine
from types import ModuleType
from typing import Any

ALWAYS = {
    "UNSLOTH_DISABLE_STATISTICS": "1",  # else loading a model downloads a counter
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process: it starts in seconds and is FIFO with us
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # our log-probabilities come from vLLM's own sampler
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
CPU_ONLY = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else vLLM pins this process to a core
    "TORCH_COMPILE_DISABLE": "1",  # else the first generation compiles two samplers for half a minute
    "GOMP_SPINCOUNT": "0",  # idle OpenMP threads yield their core to the graders
}
GPU_ONLY = {
    "UNSLOTH_ALLOW_CPU": "1",  # its one effect beside CUDA: Unsloth leaves TRL's trainers as they are
}


@cache
def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers. Asks the driver's tool, so torch need not be imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.startswith("GPU")


def prepare_environment(model: str | None = None) -> None:
    """Set defaults for the libraries. A `model` that is local needs no hub, so the hub is kept offline."""
    defaults = ALWAYS | (GPU_ONLY if has_gpu() else CPU_ONLY)
    if model is not None and Path(model).exists():
        defaults = defaults | {"HF_HUB_OFFLINE": "1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if not has_gpu() and not any(isinstance(finder, OtherKernels) for finder in sys.meta_path):
        sys.meta_path.insert(0, OtherKernels())


class OtherKernels(MetaPathFinder, Loader):
    """Keeps Unsloth from loading vLLM's kernels for x86 CPUs with bf16 on one without.

    It imports `vllm._C` to see whether vLLM works. vLLM itself then chooses `vllm._C_AVX512` or `vllm._C_AVX2`, which
    register the same operators, and torch ends the process at the second registration. An empty module is found
    instead.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == "vllm._C" and _is_x86_without_bf16() else None

    def exec_module(self, module: ModuleType) -> None:
        pass


@cache
def _is_x86_without_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return machine() == "x86_64" and cpuinfo.is_file() and "avx512_bf16" not in cpuinfo.read_text()
