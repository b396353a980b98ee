"""The adapted layer and its injection: W' = W + U Σ (Σ v_i P_i) Vᵀ, after "Learning to Reason in 13 Parameters"
(Morris et al., arXiv 2602.04118).

All layers of a model share one small parameter `v` (groups, u), kept once in the model's `tinylora` module. A replaced
layer keeps its frozen original as the submodule `base_layer`: Unsloth's fast decoding path calls the forward of such
layers, and silently drops the update of any other replacement. R is computed inside each layer's own forward, in
float32, so that gradient checkpointing counts every contribution to `v` once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.config import AdapterError, TinyLoRAConfig
from adapters.factors import Factors, cached_factors, is_quantized
from adapters.merge import delta_weight, mixing
from adapters.seeds import projection_of


class TinyLoRA(nn.Module):
    """The trainable vector of a model and what it means: config, module names, fingerprint of the base.

    `v` is float32 (groups, u), zero at the start. `enabled` switches the update of all layers on or off.
    """

    def __init__(self, config: TinyLoRAConfig, names: list[str], base_fingerprint: str, factors_file: Path) -> None:
        super().__init__()
        self.config = config
        self.names = names
        self.base_fingerprint = base_fingerprint
        self.factors_file = factors_file
        self.enabled = True
        self.v = nn.Parameter(torch.zeros(config.groups, config.u, dtype=torch.float32))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within this context the model is its frozen base."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before


class TinyLoRALinear(nn.Module):
    """A frozen linear layer plus the rank-r update that `v` steers.

    x (..., in) → (..., out) in the base layer's output dtype. `left` (out, r) and `right` (r, in) are in the dtype of
    the base's activations, `projections` (u, r, r) in float32.
    """

    def __init__(
        self, base_layer: nn.Module, factors: Factors, projections: Tensor, bank: TinyLoRA, group: int
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = factors.right.shape[1], factors.left.shape[0]
        self.group = group
        self._bank = (bank,)  # in a tuple: the vector belongs to the model, not to each of its layers
        if hasattr(base_layer, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack the weights on a CPU's first evaluation and compute in bf16 from then on
            base_layer.support_avx512bf16_for_cpu = False
        weight = base_layer.weight
        dtype = weight.quant_state.dtype if is_quantized(base_layer) else weight.dtype
        self.register_buffer("left", factors.left.to(weight.device, dtype), persistent=False)
        self.register_buffer("right", factors.right.to(weight.device, dtype), persistent=False)
        self.register_buffer("projections", projections.to(weight.device), persistent=False)

    def mixing(self) -> Tensor:
        """R (r, r) in float32 at the current `v`."""
        return mixing(self._bank[0].v[self.group].float(), self.projections)

    def delta_weight(self) -> Tensor:
        """ΔW (out, in) in float32 at the current `v`."""
        return delta_weight(self.left, self.mixing(), self.right)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        if not self._bank[0].enabled:
            return y
        hidden = F.linear(x.to(self.right.dtype), self.right)
        with torch.autocast(x.device.type, enabled=False):
            hidden = F.linear(hidden.float(), self.mixing())
        return y + F.linear(hidden.to(self.left.dtype), self.left).to(y.dtype)


def target_linears(model: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    """The layers to replace, by full name, in order of depth. Raises `AdapterError` where there are none."""
    linears = {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets and hasattr(module, "weight")
    }
    if not linears:
        raise AdapterError(f"the model has no module named {', '.join(targets)}; check the adapter's targets")
    for name, module in linears.items():
        if not isinstance(module, nn.Linear):
            raise AdapterError(f"module {name} is a {type(module).__name__}; only linear layers can be adapted")
        if not is_quantized(module) and not module.weight.is_floating_point():
            raise AdapterError(
                f"module {name} has packed {module.weight.dtype} weights without a 4-bit state; load it as NF4"
            )
    return linears


def inject(model: nn.Module, config: TinyLoRAConfig) -> TinyLoRA:
    """Freeze `model` and replace its target layers in place; returns the adapter, also kept as `model.tinylora`.

    Every other parameter, biases and norms included, is frozen. Raises `AdapterError` for a model that is adapted
    already or has fewer modules than groups.
    """
    if hasattr(model, "tinylora"):
        raise AdapterError("the model already carries a TinyLoRA adapter")
    linears = target_linears(model, config.targets)
    if config.groups > len(linears):
        raise AdapterError(f"{config.groups} groups for {len(linears)} modules; use at most {len(linears)}")
    lapack_signs = config.projections == "cuda-full"
    factors, base_fingerprint, factors_file = cached_factors(linears, config.rank, lapack_signs)
    bank = TinyLoRA(config, list(linears), base_fingerprint, factors_file)
    bank.to(next(iter(linears.values())).weight.device)
    model.requires_grad_(False)
    for index, (name, linear) in enumerate(linears.items()):
        parent, _, child = name.rpartition(".")
        layer = TinyLoRALinear(
            linear,
            factors[name],
            projection_of(config, index, name),
            bank,
            config.group_of(index, len(linears)),
        )
        setattr(model.get_submodule(parent), child, layer)
    model.add_module("tinylora", bank)
    return bank


def adapted_layers(model: nn.Module) -> dict[str, TinyLoRALinear]:
    """The replaced layers by their original names, in order of depth."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TinyLoRALinear)}
