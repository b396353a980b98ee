"""Checkpoints of TinyLoRA-Qwen-Coder and Qwen4Luogu-RL, the projects this one grew from: `tiny_lora_v.pt`.

Their file holds one `v` and the seed of the projections, which were drawn on the GPU in bf16, one `torch.randn` a
module in order of depth. CUDA's generator is Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011) with a fixed layout, so a few lines draw the same numbers anywhere. Three rules were in use, and the file does not
say which:

    cuda-full         P (u, r, r), as drawn                       Qwen4Luogu-RL, first versions
    cuda-diag         P (u, r), as drawn, on R's diagonal         TinyLoRA-Qwen-Coder 2.0
    cuda-diag-scaled  P (u, r) / √r, on R's diagonal              2.5 and later

A diagonal R does not see the signs of singular vectors. A full one does; there the signs of LAPACK are taken, which is
what those projects used, and which another LAPACK may choose differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.config import PRINCIPAL, RULES, AdapterError, TinyLoRAConfig
from adapters.merge import projection

VARIANTS = tuple(rule.removeprefix("cuda-") for rule in RULES if rule.startswith("cuda-"))
SCALED_SEEDS = (212, 20260306)  # used by versions that scaled, and only by them
FILE_NAME = "tiny_lora_v.pt"


def philox(key: tuple[int, int], counter: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32-10: counters (n, 4) → random words (n, 4)."""
    x = counter.astype(np.uint64).T.copy()
    k0, k1 = key
    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        a, b = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        x = np.stack([(b >> shift) ^ x[1] ^ np.uint64(k0), b & mask, (a >> shift) ^ x[3] ^ np.uint64(k1), a & mask])
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x.T.astype(np.uint32)


def cuda_randn(seed: int, call: int, count: int) -> Tensor:
    """What call number `call` of `torch.randn(count)` gives on a CUDA device after `torch.manual_seed(seed)`, float32.

    Valid while a draw fits one pass of the kernel's grid (tens of thousands of numbers), and all calls are alike.
    """
    counter = np.zeros((count, 4), dtype=np.uint32)
    counter[:, 0], counter[:, 2] = call, np.arange(count)
    words = philox((seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF), counter).astype(np.float32)
    scale = np.float32(2.0**-32)  # cuRAND's conversion and Box and Muller's transform, in float32
    u = words[:, 0] * scale + scale / np.float32(2)
    angle = words[:, 1] * (scale * np.float32(2 * np.pi)) + scale * np.float32(np.pi)
    return torch.from_numpy(np.sin(angle) * np.sqrt(np.float32(-2) * np.log(u)))


def projection_of(config: TinyLoRAConfig, index: int, name: str) -> Tensor:
    """P (u, r, r) float32 of module `name`, number `index` in order of depth, by the config's rule."""
    u, r = config.u, config.rank
    if config.projections == PRINCIPAL:
        return torch.zeros(u, r, r)  # until `TinyLoRA.set_projections`
    if config.projections == "normal":
        return projection(u, r, config.seed, name)
    full = config.projections == "cuda-full"
    drawn = cuda_randn(config.seed, index, u * r * r if full else u * r).bfloat16()
    if full:
        return drawn.float().view(u, r, r)
    if config.projections == "cuda-diag-scaled":
        drawn = (drawn.float() * float(np.float32(1 / r**0.5))).bfloat16()
    return torch.diag_embed(drawn.float().view(u, r))


@dataclass(frozen=True)
class SeedCheckpoint:
    """One vector (u,) float32 and how it was trained. `variant` is None where the file leaves it open."""

    v: Tensor
    rank: int
    seed: int
    base_model: str
    modules: int | None
    variant: str | None

    def config(self, variant: str | None = None) -> TinyLoRAConfig:
        """The adapter that gives `v` its meaning. Raises `AdapterError` where the variant must be said."""
        chosen = variant or self.variant
        if chosen is None:
            raise AdapterError(
                f"the checkpoint does not say which projections it was trained with; add --variant with one of "
                f"{', '.join(VARIANTS)} (see docs/checkpoints.md)"
            )
        if chosen not in VARIANTS:
            raise AdapterError(f"--variant must be one of {', '.join(VARIANTS)}, not {chosen!r}")
        return TinyLoRAConfig(u=len(self.v), rank=self.rank, seed=self.seed, projections=f"cuda-{chosen}")


def read_seed_checkpoint(path: str | Path) -> SeedCheckpoint:
    """Read a `tiny_lora_v.pt`; no code in it can run. Raises `AdapterError` for a missing, broken or foreign file."""
    path = Path(path)
    if not path.is_file():
        raise AdapterError(f"checkpoint {path}: no such file")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - unpickling bytes that are no pickle can raise anything
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:120] or type(error).__name__
        raise AdapterError(f"checkpoint {path}: the file is damaged or holds more than tensors ({reason})") from None
    if isinstance(stored, Tensor):
        raise AdapterError(
            f"checkpoint {path} is a bare tensor: rank, seed and base model are not in it; save it as a dictionary "
            f"with global_v, u_value, rank, seed, model_id and total_replaced_layers"
        )
    return _seed_checkpoint(path, stored)


def _seed_checkpoint(path: Path, stored: Any) -> SeedCheckpoint:
    if not isinstance(stored, Mapping) or not isinstance(stored.get("global_v"), Tensor):
        raise AdapterError(f"checkpoint {path}: not a {FILE_NAME} (it holds no tensor global_v)")
    numbers = {}
    for name in ("u_value", "rank", "seed"):
        value = stored.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise AdapterError(f"checkpoint {path}: {name} must be a whole number, not {value!r}")
        numbers[name] = value
    v = stored["global_v"].detach().float().flatten()
    if len(v) != numbers["u_value"]:
        raise AdapterError(f"checkpoint {path}: global_v has {len(v)} numbers, but u_value is {numbers['u_value']}")
    if not v.isfinite().all():
        raise AdapterError(f"checkpoint {path}: global_v holds numbers that are not finite")
    modules = stored.get("total_replaced_layers")
    scaled = "is_quantized" in stored or numbers["seed"] in SCALED_SEEDS
    return SeedCheckpoint(
        v=v,
        rank=numbers["rank"],
        seed=numbers["seed"],
        base_model=str(stored.get("model_id", "")),
        modules=modules if isinstance(modules, int) else None,
        variant="diag-scaled" if scaled else None,
    )


def apply_seed_checkpoint(checkpoint: SeedCheckpoint, model: Any, path: str | Path) -> None:
    """Set the adapter of a model injected with `checkpoint.config(...)`.

    Raises `AdapterError` for a model with another number of modules than the checkpoint's.
    """
    count = len(model.tinylora.names)
    if checkpoint.modules not in (None, count):
        raise AdapterError(
            f"checkpoint {path} was trained on {checkpoint.base_model} with {checkpoint.modules} modules, but the "
            f"model has {count}; give its base with --model"
        )
    with torch.no_grad():
        model.tinylora.v.copy_(checkpoint.v.unsqueeze(0))
