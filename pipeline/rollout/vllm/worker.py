"""The part of the refresh that runs inside vLLM: `v` in, another policy out.

vLLM imports this module by name before it loads the model, and adds the class's methods to the worker, which lives in
this process and so reads the trainer's own frozen weights: the engine keeps no base of its own. Two ways to serve ΔW:

- merge: a refresh writes round(W + ΔW(v)) into the row slices of vLLM's fused parameters, in their own storage, so CUDA
  graphs stay valid;
- lowrank: the fused layers carry the factors (`lowrank.py`) and a refresh writes only R.

Left out: tensor parallelism (one worker holds all).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapters import TinyLoRA
from adapters.base import Packed, dense
from adapters.merge import Rounding, delta_weight, kept_share
from pipeline.rollout.vllm.lowrank import LowRank

FUSED = {  # module: (vLLM's fused module, position among its parts)
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
MEASURED_MODULES = 16  # the surviving share is measured on at most about this many modules
FOREIGN = 0.2  # a 4-bit base is within about 0.1 of the weights it was made from, in relative norm


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


class TinyLoRAWorker:
    """Methods that `collective_rpc` reaches."""

    @torch.inference_mode()
    def tinylora_attach(self, bank: TinyLoRA, rounding: Rounding | None) -> str:
        """Serve the trainer's frozen weights with its update, merged with `rounding` or, without one, beside them.

        Returns the name of a module whose served weights were not made from the same checkpoint as the trainer's, or
        an empty string.
        """
        model = self.get_model()  # type: ignore[attr-defined]
        self.tinylora = bank
        self.tinylora_bases = bank.bases()
        self.tinylora_weights = []
        for layer, name, base in zip(bank.layers, bank.names, self.tinylora_bases, strict=True):
            weight = _served_weight(model, name)
            if weight.shape != (layer.out_features, layer.in_features):
                raise RuntimeError(f"{name}: the engine serves {tuple(weight.shape)} of it; use one GPU per engine")
            own = dense(base).to(weight.dtype)
            distance, limit = (weight - own).float().norm(), FOREIGN if isinstance(base, Packed) else 0.0
            if not distance <= limit * own.float().norm():
                return name
            weight.copy_(own)
            self.tinylora_weights.append(weight)
        self.tinylora_merger = None if rounding is None else bank.merger_into(self.tinylora_weights, rounding)
        self.tinylora_lowrank = None
        if rounding is None:
            places = [_fused_place(model, name) for name in bank.names]
            self.tinylora_lowrank = LowRank(bank, places)
        return ""

    @torch.inference_mode()
    def tinylora_refresh(self, v: list[list[float]]) -> None:
        """Make `v` the policy."""
        mixings = self._tinylora_mixings(v)
        if self.tinylora_merger is not None:
            self.tinylora_merger.every(mixings)
        else:
            self.tinylora_lowrank.write(mixings)  # type: ignore[union-attr]
        if mixings.is_cuda:
            torch.cuda.synchronize()

    def _tinylora_mixings(self, v: list[list[float]]) -> Tensor:
        return self.tinylora.mixings_of(torch.tensor(v, dtype=torch.float32, device=self.tinylora_weights[0].device))

    @torch.inference_mode()
    def tinylora_kept_share(self, v: list[list[float]]) -> float:
        """Share of ΔW(v) that is in the served weights, over a sample of the modules (1.0 at v = 0 and unmerged)."""
        if self.tinylora_merger is None:
            return 1.0
        layers, mixings = self.tinylora.layers, self._tinylora_mixings(v)
        totals = torch.zeros(2, dtype=torch.float64, device=mixings.device)
        for index in range(0, len(layers), -(-len(layers) // MEASURED_MODULES)):
            delta = delta_weight(layers[index].left, mixings[index], layers[index].right)
            base, served = dense(self.tinylora_bases[index]), self.tinylora_weights[index]
            totals += torch.stack(kept_share(base, served, delta))
        survived, wanted = totals.tolist()
        return survived / wanted if wanted else 1.0

    def tinylora_digest(self) -> str:
        """Hex digest of all bits of the adapted weights as they are served now, and of R where it is beside them."""
        import hashlib

        digest = hashlib.blake2b(digest_size=16)
        beside = [] if self.tinylora_lowrank is None else [self.tinylora_lowrank.mixings]
        for tensor in self.tinylora_weights + beside:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _fused_place(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, int]:
    """vLLM's layer that serves the matrix `name`, and the position among its parts."""
    parent, _, child = name.rpartition(".")
    fused, position = FUSED.get(child, (child, 0))
    return model.get_submodule(f"{parent}.{fused}"), position


def _served_weight(model: torch.nn.Module, name: str) -> Tensor:
    """The rows of vLLM's (fused) parameter that serve the matrix `name`, as a view."""
    layer, position = _fused_place(model, name)
    weight = layer.weight.data
    if name.rpartition(".")[2] not in FUSED:
        return weight
    sizes = layer.output_partition_sizes
    start = sum(sizes[:position])
    return weight[start : start + sizes[position]]
