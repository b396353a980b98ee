"""Environment variables that torch, vLLM, Unsloth and the hub read when they are imported.

Call `prepare_environment` before the first of those imports. Variables that the user has set are left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

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
CONTAINER_MEMORY = Path("/sys/fs/cgroup/memory.max")
GPU_ONLY = {
    "UNSLOTH_ALLOW_CPU": "1",  # its one effect beside CUDA: Unsloth leaves TRL's trainers as they are
    "UNSLOTH_OFFLOAD_FP32": "exact",  # else it rounds the residual stream to bf16 before it recomputes from it
}


@cache
def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers. Asks the driver's tool, so torch need not be imported."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and gpu_count() > 0


@cache
def gpu_count() -> int:
    """How many NVIDIA GPUs this machine has, whether this process may use them or not."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return sum(line.startswith("GPU") for line in listed.splitlines())


def machine_memory() -> int:
    """Bytes of memory that this machine has, or its container may have, in use or not."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = CONTAINER_MEMORY.read_text().strip() if CONTAINER_MEMORY.is_file() else "max"
    return min(whole, int(allowed)) if allowed.isdigit() else whole


def prepare_environment(model: str | None = None) -> None:
    """Set defaults for the libraries. A `model` that is local needs no hub, so the hub is kept offline."""
    defaults = ALWAYS | (GPU_ONLY if has_gpu() else CPU_ONLY)
    if model is not None and Path(model).exists():
        defaults = defaults | {"HF_HUB_OFFLINE": "1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
