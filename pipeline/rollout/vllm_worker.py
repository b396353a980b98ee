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
from adapters.merge import Rounding, delta_weight, kept_share, merge_weight, mixing, salt_of
from adapters.seeds import projection_of

FUSED = {  # module: (vLLM's fused module, position among its parts)
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
MEASURED_MODULES = 16  # the surviving share is measured on at most about this many modules


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
    """One adapted matrix inside the engine: a view of vLLM's parameter and what its merge needs.

    The pristine base is kept as a dense copy, or as packed NF4 with its state: then it is what a 4-bit trainer computes
    with.
    """

    name: str
    weight: Tensor  # (out, in), a row slice of a fused parameter
    dense: Tensor | None
    packed: tuple[Tensor, Any] | None
    left: Tensor
    right: Tensor
    projections: Tensor
    group: int
    salt: int

    def base(self) -> Tensor:
        """The pristine matrix (out, in) in the served dtype."""
        if self.dense is not None:
            return self.dense
        from bitsandbytes.functional import dequantize_4bit

        assert self.packed is not None
        return dequantize_4bit(*self.packed).reshape(self.weight.shape)


def quantized(weight: Tensor) -> tuple[Tensor, Any]:
    """NF4 with double quantisation, by the call with which a 4-bit trainer quantises on loading."""
    from bitsandbytes.functional import quantize_4bit

    return quantize_4bit(weight.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")


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
                    dense=None if quant == "nf4" else weight.clone(),
                    packed=quantized(weight) if quant == "nf4" else None,
                    left=left.to(weight.device),
                    right=right.to(weight.device),
                    projections=projection_of(adapter, index, name).to(weight.device),
                    group=adapter.group_of(index, len(names)),
                    salt=salt_of(name),
                )
            )
        slots = self.tinylora_slots
        for slot in slots:
            slot.weight.copy_(slot.base())
        device = slots[0].weight.device
        self.tinylora_projections = torch.stack([slot.projections for slot in slots])
        self.tinylora_groups = torch.tensor([slot.group for slot in slots], device=device)
        self.tinylora_fused = fused_refresh(slots, rounding) if slots[0].weight.dtype == torch.bfloat16 else None
        return fingerprint((slot.name, slot.base()) for slot in slots)

    def _tinylora_mixings(self, v: list[list[float]]) -> Tensor:
        """R of every module (modules, r, r)."""
        vectors = torch.tensor(v, dtype=torch.float32, device=self.tinylora_groups.device)
        return mixing(vectors[self.tinylora_groups], self.tinylora_projections)

    @torch.inference_mode()
    def tinylora_refresh(self, v: list[list[float]]) -> float:
        """Write round(W + ΔW(v)) everywhere; returns seconds."""
        start = time.perf_counter()
        mixings = self._tinylora_mixings(v)
        if self.tinylora_fused is not None:
            self.tinylora_fused(mixings)
        else:
            for slot, r in zip(self.tinylora_slots, mixings, strict=True):
                delta = delta_weight(slot.left, r, slot.right)
                slot.weight.copy_(merge_weight(slot.base(), delta, self.tinylora_rounding, slot.salt))
        if mixings.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    @torch.inference_mode()
    def tinylora_kept_share(self, v: list[list[float]]) -> float:
        """Share of ΔW(v) that is in the served weights, over a sample of the modules (1.0 at v = 0)."""
        every = -(-len(self.tinylora_slots) // MEASURED_MODULES)
        survived = wanted = 0.0
        mixings = self._tinylora_mixings(v)
        for slot, r in list(zip(self.tinylora_slots, mixings, strict=True))[::every]:
            numerator, denominator = kept_share(slot.base(), slot.weight, delta_weight(slot.left, r, slot.right))
            survived, wanted = survived + numerator, wanted + denominator
        return survived / wanted if wanted else 1.0

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


def fused_refresh(slots: list[Slot], rounding: Rounding) -> Any:
    """One Triton launch for all modules on a GPU, None on a CPU."""
    if not slots[0].weight.is_cuda:
        return None
    from adapters.refresh_kernel import FusedRefresh, packed_base

    packed = slots[0].packed
    return FusedRefresh(
        targets=[slot.weight for slot in slots],
        bases=[packed_base(*slot.packed) if slot.packed else slot.dense for slot in slots],  # type: ignore[misc]
        lefts=[slot.left.contiguous() for slot in slots],
        rights=[slot.right.contiguous() for slot in slots],
        salts=[slot.salt for slot in slots],
        stochastic=rounding == "stochastic",
        code=packed[1].code if packed else None,
    )


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
