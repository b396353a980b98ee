"""The part of the refresh that runs inside vLLM: `v` in, another policy out.

vLLM imports this module by name before it loads the model, and adds the class's methods to the worker, which lives in
this process and so reads the trainer's own frozen weights: the engine keeps no base of its own. Three ways to serve ΔW:

- merge: a refresh writes round(W + ΔW(v)) into the row slices of vLLM's fused parameters, in their own storage, so CUDA
  graphs stay valid;
- merge without weights of its own (`packed.py`): a refresh writes R, and layers are made when they compute;
- lowrank: the fused layers carry the factors (`lowrank.py`) and a refresh writes only R.

Left out: tensor parallelism (one worker holds all).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapters import TinyLoRA
from adapters.base import dense
from adapters.merge import Rounding, delta_weight, kept_share
from pipeline.rollout.vllm.fused import fused_place
from pipeline.rollout.vllm.lowrank import LowRank
from pipeline.rollout.vllm.packed import PackedWeights

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


class TinyLoRAWorker:
    """Methods that `collective_rpc` reaches."""

    @torch.inference_mode()
    def tinylora_attach(self, bank: TinyLoRA, rounding: Rounding | None, packed: PackedWeights | None) -> None:
        """Serve the update of the trainer, merged with `rounding` or, without one, beside the weights, of which the
        engine has none if it computes from `packed` ones."""
        model = self.get_model()  # type: ignore[attr-defined]
        self.tinylora, self.tinylora_packed = bank, packed
        self.tinylora_weights = [] if packed else [_served_weight(model, name) for name in bank.names]
        for layer, name, weight in zip(bank.layers, bank.names, self.tinylora_weights, strict=False):
            if weight.shape != (layer.out_features, layer.in_features):
                raise RuntimeError(f"{name}: the engine serves {tuple(weight.shape)} of it; use one GPU per engine")
        self.tinylora_merger = self.tinylora_lowrank = None
        if rounding is None:
            places = [_fused_module(model, name) for name in bank.names]
            self.tinylora_lowrank = LowRank(bank, places)
        elif packed is None:
            self.tinylora_merger = bank.merger_into(self.tinylora_weights, rounding)

    def tinylora_sample_in_one_pass(self) -> None:
        """From now on (`sampler.py`)."""
        from pipeline.rollout.vllm.sampler import sample_in_one_pass

        sample_in_one_pass(self.model_runner)  # type: ignore[attr-defined]

    @torch.inference_mode()
    def tinylora_refresh(self, v: list[list[float]]) -> None:
        """Make `v` the policy."""
        mixings = self._tinylora_mixings(v)
        if self.tinylora_merger is not None:
            self.tinylora_merger.every(mixings)
        if self.tinylora_lowrank is not None:
            self.tinylora_lowrank.write(mixings)
        if self.tinylora_packed is not None:
            self.tinylora_packed.write(mixings)
        if mixings.is_cuda:
            torch.cuda.synchronize()

    def _tinylora_mixings(self, v: list[list[float]]) -> Tensor:
        return self.tinylora.mixings_of(torch.tensor(v, dtype=torch.float32, device=self.tinylora.v.device))

    def _tinylora_served(self, index: int) -> Tensor:
        """The matrix (out, in) that module `index` is served with, valid until another is asked for."""
        packed = self.tinylora_packed
        return self.tinylora_weights[index] if packed is None else packed.one(index)

    @torch.inference_mode()
    def tinylora_kept_share(self, v: list[list[float]]) -> float:
        """Share of ΔW(v) that is in the served weights, over a sample of the modules (1.0 at v = 0 and unmerged)."""
        if self.tinylora_lowrank is not None:
            return 1.0
        layers, mixings = self.tinylora.layers, self._tinylora_mixings(v)
        totals = torch.zeros(2, dtype=torch.float64, device=mixings.device)
        for index in range(0, len(layers), -(-len(layers) // MEASURED_MODULES)):
            delta = delta_weight(layers[index].left, mixings[index], layers[index].right)
            base, served = dense(self.tinylora.bases()[index]), self._tinylora_served(index)
            totals += torch.stack(kept_share(base, served, delta))
        survived, wanted = totals.tolist()
        return survived / wanted if wanted else 1.0

    def tinylora_digest(self) -> str:
        """Hex digest of all bits of the adapted weights as they are served now, and of R where it is beside them."""
        import hashlib

        digest = hashlib.blake2b(digest_size=16)
        for index in range(len(self.tinylora.layers)):
            digest.update(_bits(self._tinylora_served(index)))
        if self.tinylora_lowrank is not None:
            digest.update(_bits(self.tinylora_lowrank.mixings))
        return digest.hexdigest()


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _fused_module(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, int]:
    """vLLM's layer that serves the matrix `name`, and the position among its parts."""
    fused, position = fused_place(name)
    return model.get_submodule(fused), position


def _served_weight(model: torch.nn.Module, name: str) -> Tensor:
    """The rows of vLLM's (fused) parameter that serve the matrix `name`, as a view."""
    layer, position = _fused_module(model, name)
    sizes = getattr(layer, "output_partition_sizes", [len(layer.weight)])
    return layer.weight.data.split(sizes)[position]
