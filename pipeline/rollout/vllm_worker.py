"""The part of the refresh that runs inside vLLM: `v` in, merged weights written in place.

vLLM imports this module by name in every worker before it loads the model, and adds the class's methods to the worker.
The worker keeps the pristine base of every adapted matrix; a refresh writes round(W + ΔW(v)) into the row slices of
vLLM's fused parameters, in their own storage, so CUDA graphs stay valid. Left out: tensor parallelism (one worker holds
all).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.config import TinyLoRAConfig
from adapters.factors import fingerprint
from adapters.merge import Rounding, delta_weight, kept_share, merge_weight, mixing, projection, salt_of

FUSED = {  # module: (vLLM's fused module, position among its parts)
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
MEASURED_MODULES = 48  # the surviving share is measured on at most about this many modules


def keep_cpu_weights_in_place() -> None:
    """On a CPU vLLM packs weights into a copy for oneDNN or AMX and frees them; an edit in place would then do
    nothing."""
    import vllm._custom_ops
    import vllm.model_executor.layers.utils as layers

    vllm._custom_ops._supports_onednn = False
    if hasattr(layers, "check_cpu_sgl_kernel"):
        layers.check_cpu_sgl_kernel = lambda *_: False


if not torch.cuda.is_available():
    keep_cpu_weights_in_place()


@dataclass
class Slot:
    """One adapted matrix inside the engine: a view of vLLM's parameter and what its merge needs."""

    name: str
    weight: Tensor  # (out, in), a row slice of a fused parameter
    base: Tensor  # (out, in), pristine
    left: Tensor
    right: Tensor
    projections: Tensor
    group: int
    salt: int


def requantized(weight: Tensor) -> Tensor:
    """`weight` after NF4 with double quantisation and back: the matrix that a 4-bit trainer computes with."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(packed, state).reshape(weight.shape)


class TinyLoRAWorker:
    """Methods that `collective_rpc` reaches. Arguments and results are plain data; factors travel by file path."""

    def tinylora_attach(
        self, names: list[str], factors_file: str, config: dict[str, Any], quant: str, rounding: Rounding
    ) -> str:
        """Find the adapted matrices by their names in order of depth, keep their pristine bases (dequantised NF4 of
        them for `quant` nf4), and return the bases' fingerprint."""
        from safetensors.torch import load_file

        adapter = TinyLoRAConfig(**config)
        factors = load_file(factors_file)
        model = self.get_model()  # type: ignore[attr-defined]
        self.tinylora_rounding = rounding
        self.tinylora_slots: list[Slot] = []
        for index, name in enumerate(names):
            left, right = factors[f"{name}.left"], factors[f"{name}.right"]
            weight = _served_weight(model, name)
            if weight.shape != (left.shape[0], right.shape[1]):
                raise RuntimeError(f"{name}: the engine serves {tuple(weight.shape)} of it; use one GPU per engine")
            self.tinylora_slots.append(
                Slot(
                    name=name,
                    weight=weight,
                    base=requantized(weight) if quant == "nf4" else weight.clone(),
                    left=left.to(weight.device),
                    right=right.to(weight.device),
                    projections=projection(adapter.u, adapter.rank, adapter.seed, name).to(weight.device),
                    group=adapter.group_of(index, len(names)),
                    salt=salt_of(name),
                )
            )
        for slot in self.tinylora_slots:
            slot.weight.copy_(slot.base)
        return fingerprint((slot.name, slot.base) for slot in self.tinylora_slots)

    @torch.inference_mode()
    def tinylora_refresh(self, v: list[list[float]]) -> tuple[float, float]:
        """Write round(W + ΔW(v)) everywhere; returns seconds and the surviving share (1.0 at v = 0)."""
        start = time.perf_counter()
        slots = self.tinylora_slots
        vectors = torch.tensor(v, dtype=torch.float32, device=slots[0].weight.device)
        every = -(-len(slots) // MEASURED_MODULES)
        survived = wanted = 0.0
        for index, slot in enumerate(slots):
            delta = delta_weight(slot.left, mixing(vectors[slot.group], slot.projections), slot.right)
            merged = merge_weight(slot.base, delta, self.tinylora_rounding, slot.salt)
            slot.weight.copy_(merged)
            if index % every == 0:
                numerator, denominator = kept_share(slot.base, merged, delta)
                survived, wanted = survived + numerator, wanted + denominator
        if vectors.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start, survived / wanted if wanted else 1.0

    def tinylora_seed(self, seed: int) -> None:
        """Fix the worker's random numbers for the next generation."""
        torch.manual_seed(seed)

    def tinylora_digest(self) -> str:
        """Hex digest of all bits of the adapted weights as they are served now."""
        import hashlib

        digest = hashlib.blake2b(digest_size=16)
        for slot in self.tinylora_slots:
            digest.update(slot.weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _served_weight(model: torch.nn.Module, name: str) -> Tensor:
    """The rows of vLLM's (fused) parameter that serve the matrix `name`, as a view."""
    parent, _, child = name.rpartition(".")
    fused, position = FUSED.get(child, (child, 0))
    layer = model.get_submodule(f"{parent}.{fused}")
    weight = layer.weight.data
    if child not in FUSED:
        return weight
    sizes = layer.output_partition_sizes
    start = sum(sizes[:position])
    return weight[start : start + sizes[position]]
