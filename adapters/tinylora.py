"""The adapted layer and its injection: W' = W + U Σ (Σ v_i P_i) Vᵀ, after "Learning to Reason in 13 Parameters"
(Morris et al., arXiv 2602.04118).

All layers of a model share one small parameter `v` (groups, u), kept once in the model's `tinylora` module. A replaced
layer keeps its frozen original as the submodule `base_layer`: Unsloth's fast decoding path calls the forward of such
layers, and silently drops the update of any other replacement. A layer computes in one of two ways:

- beside the frozen layer (the default): y = W x + U Σ (R (Vᵀ x)), exact, and an ordinary autograd graph;
- with the merged weight, once `TinyLoRA.merge_with` was called: y = round(W + ΔW) x, the very weights that a merging
  rollout engine serves. It costs no pass over y beyond the frozen layer's own (`merged.py`).

Every layer adds its own share to the gradient of `v`, so gradient checkpointing of any kind counts each one once.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Base, frozen_base, is_quantized, wide
from adapters.config import AdapterError, TinyLoRAConfig
from adapters.factors import Factors, cached_factors
from adapters.legacy import projection_of
from adapters.merge import Merger, Rounding, delta_weight, mixing, salt_of
from adapters.merged import MergedGate, MergedLinear, onto
from adapters.served import MadeFrom

LARGEST_WEIGHT = 2.0**8  # of a token, scaled: far from both ends of float16 also behind many layers
LEAST_WEIGHT = 2.0**-100  # that is scaled up to it; less, or none at all, stays far below
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers of one parent that read one tensor


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
        self.layers: tuple[TinyLoRALinear, ...] = ()  # in a tuple: they belong to the model
        self.rows: Tensor | None = None  # copies of `v`, in `per_row`
        self.owners: Tensor | None = None  # and which of them each token of the batch computes with
        self.gradient_scale: Tensor | float = 1.0  # of all that flows back to the layers: see `scale_gradients`
        self.undo_scale(self.v)
        self.merger: Merger | None = None
        self.served: MadeFrom[list[Tensor]] = MadeFrom()  # the engine's merged weights, by layer
        self._mixings: MadeFrom[Tensor] = MadeFrom()
        self.probe: MadeFrom[Tensor] = MadeFrom()  # of the projections: `adapters/checkpoint.py`
        self._bases: list[Base] | None = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within this context the model is its frozen base."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def scale_gradients(self, weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor | float:
        """The factor for what is about to flow back to the layers in `dtype`, made with these weights of tokens;
        gradients of `v` and of its copies are divided by it.

        Float16 has no numbers below 6e-8, where most of a mean over a batch lies ("Mixed Precision Training",
        Micikevicius and others, 2018). A power of two, so nothing is rounded by it; 1 for other types.
        """
        if dtype == torch.float16:
            largest = torch.stack([weight.abs().max() for weight in weights]).max()
            ratio = LARGEST_WEIGHT / largest.float().clamp(min=LEAST_WEIGHT)
            self.gradient_scale = torch.exp2(torch.floor(torch.log2(ratio)))
        else:
            self.gradient_scale = 1.0
        return self.gradient_scale

    def undo_scale(self, leaf: Tensor) -> None:
        """Let the gradients of `v`, or of what layers compute with in its place, be divided by the scale."""
        leaf.register_hook(lambda gradient: gradient / self.gradient_scale)

    @contextmanager
    def per_row(self, owners: Tensor, count: int) -> Iterator[Tensor]:
        """Within this context token i of a batch computes with copy owners[i] of `v`, (count, groups, u), whose
        gradients are those of its tokens alone; at the end their sum is added to the gradient of `v`."""
        self.rows = rows = self.v.detach().expand(count, -1, -1).clone().requires_grad_()
        self.owners = owners
        self.undo_scale(rows)
        try:
            yield rows
        finally:
            self.rows = self.owners = None
        if rows.grad is not None:
            total = rows.grad.sum(dim=0)
            self.v.grad = total if self.v.grad is None else self.v.grad + total

    def attach(self, layers: list[TinyLoRALinear]) -> None:
        """Take the layers, in order of depth, and keep what all of them need stacked."""
        self.layers = tuple(layers)
        self.register_buffer("projections", torch.stack([layer.projections for layer in layers]), persistent=False)
        groups = torch.tensor([layer.group for layer in layers], device=self.v.device)
        self.register_buffer("group_index", groups, persistent=False)

    @property
    def vector(self) -> Tensor:
        """What the layers compute with: `v`, or its copies."""
        return self.v if self.rows is None else self.rows

    def set_projections(self, projections: Tensor) -> None:
        """Take P of every layer, (modules, u, r, r)."""
        shape = (len(self.layers), self.config.u, self.config.rank, self.config.rank)
        if projections.shape != shape:
            raise AdapterError(f"projections of shape {tuple(projections.shape)}; this adapter's are {shape}")
        self.projections.copy_(projections)  # type: ignore[operator]
        for layer, own in zip(self.layers, self.projections, strict=True):  # type: ignore[arg-type]
            layer.projections.copy_(own)
        self._mixings.drop()

    def mixings_of(self, v: Tensor) -> Tensor:
        """R of every layer (modules, r, r) float32 for a vector (groups, u)."""
        return mixing(v.float()[self.group_index], self.projections)  # type: ignore[index,arg-type]

    def mixings(self) -> Tensor:
        """R of every layer at the current `v`, without a graph, computed once per value of `v`."""
        kept = self._mixings.at(self.v)
        if kept is None:
            with torch.no_grad():
                kept = self._mixings.put(self.v, self.mixings_of(self.v))
        return kept

    def merged_weight(self, index: int) -> Tensor:
        """round(W + ΔW) (out, in) of a layer at the current `v`, valid until another layer's is asked for.

        The engine's own tensor where that holds this `v`, else merged into a scratch that all layers share: the same
        bits.
        """
        served = self.served.at(self.v)
        if served is not None:
            return served[index]
        assert self.merger is not None
        return self.merger.one(index, self.mixings())

    def bases(self) -> list[Base]:
        """The frozen weights of all layers, not copies; packed ones keep what they expand."""
        if self._bases is None:
            self._bases = [frozen_base(layer.base_layer) for layer in self.layers]
        return self._bases

    def merger_into(self, targets: list[Tensor], rounding: Rounding, bases: list[Base] | None = None) -> Merger:
        """A merger of all layers' frozen weights, or of other `bases`, and factors into `targets`."""
        return Merger(
            bases or self.bases(),
            [layer.left for layer in self.layers],
            [layer.right for layer in self.layers],
            [salt_of(name) for name in self.names],
            rounding,
            targets,
        )

    def merge_with(self, rounding: Rounding | None) -> None:
        """From now on compute with merged weights, rounded so; None goes back to the exact path beside the layer."""
        self.merger = None
        if rounding is None:
            return
        largest = max(self.layers, key=lambda layer: layer.in_features * layer.out_features)
        scratch = torch.empty(
            largest.in_features * largest.out_features, dtype=largest.dtype, device=largest.left.device
        )
        shapes = [(layer.out_features, layer.in_features) for layer in self.layers]
        self.merger = self.merger_into([scratch[: m * n].view(m, n) for m, n in shapes], rounding)


class SharedInput:
    """x Aᵀ of layers that read the same tensor: the first of them computes it for all, the last one lets go of it."""

    def __init__(self, layers: list[TinyLoRALinear]) -> None:
        rank = len(layers[0].right)
        self.right = torch.cat([layer.right for layer in layers]).to(layers[0].dtype)  # (parts · r, in)
        self._parts = {layer: slice(i * rank, (i + 1) * rank) for i, layer in enumerate(layers)}
        self._last = layers[-1]
        self._kept: tuple[Any, Tensor] | None = None

    def rows(self, layer: TinyLoRALinear) -> Tensor:
        """A (r, in) of this layer in the dtype of activations."""
        return self.right[self._parts[layer]]

    @torch.no_grad()
    def hidden(self, layer: TinyLoRALinear, x: Tensor) -> Tensor:
        """x Aᵀ (rows, r) of this layer in float32; x (..., in)."""
        if self._kept is None or self._kept[0]() is not x:
            hidden = onto(x.detach().reshape(-1, x.shape[-1]).to(self.right.dtype), self.right)
            self._kept = (weakref.ref(x), hidden)
        part = self._kept[1][:, self._parts[layer]]
        if layer is self._last:
            self._kept = None
        return part


class TinyLoRALinear(nn.Module):
    """A frozen linear layer plus the rank-r update that `v` steers.

    x (..., in) → (..., out) in the base layer's output dtype, or float32 (`wide_output`). `left` (out, r) = U Σ,
    `right` (r, in) = Vᵀ and `projections` (u, r, r) are float32; `dtype` is that of the base's activations.
    """

    shared: SharedInput  # set by `inject`, once the siblings exist
    wide_output = False  # whether y stays float32, for a residual stream that is

    def __init__(
        self, base_layer: nn.Module, factors: Factors, projections: Tensor, bank: TinyLoRA, index: int, group: int
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = factors.right.shape[1], factors.left.shape[0]
        self.index = index
        self.group = group
        self._bank = (bank,)  # in a tuple: the vector belongs to the model, not to each of its layers
        if hasattr(base_layer, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack the weights on a CPU's first evaluation and compute in bf16 from then on
            base_layer.support_avx512bf16_for_cpu = False
        weight = base_layer.weight
        self.dtype: torch.dtype = weight.quant_state.dtype if is_quantized(base_layer) else weight.dtype
        self.register_buffer("left", factors.left.to(weight.device), persistent=False)
        self.register_buffer("right", factors.right.to(weight.device), persistent=False)
        self.register_buffer("left_rows", self.left.mT.contiguous().to(self.dtype), persistent=False)  # (r, out)
        self.register_buffer("projections", projections.to(weight.device), persistent=False)
        self.register_buffer("group_index", torch.tensor([group], device=weight.device), persistent=False)

    def mixing(self) -> Tensor:
        """R (r, r) in float32 at the current `v`."""
        return mixing(wide(self._bank[0].v[self.group]), self.projections)

    def delta_weight(self) -> Tensor:
        """ΔW (out, in) in float32 at the current `v`."""
        return delta_weight(self.left, self.mixing(), self.right)

    def merged_weight(self) -> Tensor:
        """As `TinyLoRA.merged_weight`."""
        return self._bank[0].merged_weight(self.index)

    @property
    def owners(self) -> Tensor | None:
        """As `TinyLoRA.owners`."""
        return self._bank[0].owners

    def forward(self, x: Tensor) -> Tensor:
        bank = self._bank[0]
        if not bank.enabled:
            return self.base_layer(x)
        if bank.merger is not None:
            return MergedLinear.apply(x, bank.vector, self._hidden(x), self)  # type: ignore[no-any-return]
        y = self.base_layer(x)
        hidden = _Onto.apply(x.reshape(-1, self.in_features).to(self.dtype), self.shared.rows(self))
        with torch.autocast(x.device.type, enabled=False):
            if bank.rows is None:
                mixed = F.linear(hidden, self.mixing().to(hidden.dtype))
            else:
                by_row = mixing(bank.rows[:, self.group], self.projections).to(hidden.dtype)  # (rows, r, r)
                mixed = (by_row.index_select(0, bank.owners) @ hidden.unsqueeze(-1)).squeeze(-1)  # type: ignore[arg-type]
            total = torch.addmm(wide(y.reshape(-1, self.out_features)), mixed, wide(self.left_rows))
        return total.view(y.shape).to(total.dtype if self.wide_output else y.dtype)

    def _hidden(self, x: Tensor) -> Tensor | None:
        return self.shared.hidden(self, x) if torch.is_grad_enabled() else None


def gated(gate: TinyLoRALinear, up: TinyLoRALinear, x: Tensor) -> Tensor | None:
    """silu(gate(x)) · up(x), rounded once, of layers without biases, if they compute with merged weights, else None."""
    bank = gate._bank[0]
    if not bank.enabled or bank.merger is None:
        return None
    return MergedGate.apply(x, bank.vector, gate._hidden(x), up._hidden(x), gate, up)  # type: ignore[no-any-return]


class _Onto(torch.autograd.Function):
    """x rowsᵀ in float32, with the gradient of x: x (n, width), rows (few, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.dtype = x.dtype
        return onto(x, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        (rows,) = ctx.saved_tensors
        return (grads[0] @ wide(rows)).to(ctx.dtype), None


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
    layers: dict[str, TinyLoRALinear] = {}
    for index, (name, linear) in enumerate(linears.items()):
        projections = projection_of(config, index, name)
        group = config.group_of(index, len(linears))
        layers[name] = TinyLoRALinear(linear, factors[name], projections, bank, index, group)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
        siblings = next((together for together in SAME_INPUT if child in together), (child,))
        names = [name.removesuffix(child) + sibling for sibling in siblings]
        present = [layers[sibling] for sibling in names if sibling in layers]
        layer.shared = SharedInput(present) if layer is present[0] else present[0].shared
    bank.attach(list(layers.values()))
    model.add_module("tinylora", bank)
    return bank


def adapted_layers(model: nn.Module) -> dict[str, TinyLoRALinear]:
    """The replaced layers by their original names, in order of depth."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TinyLoRALinear)}
