"""The measurements behind `python scripts/bench.py init`: from a frozen model to an adapted one.

The first injection finds the singular pairs, as the first run on a model does; the second reads them from the cache.
Residuals are measured anew on the weights, both ways round, against the bar of the adapter's own check.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any
from unittest.mock import patch

from pipeline.bench.form import Row, row
from pipeline.bench.timing import once
from pipeline.config import RunConfig
from pipeline.policy.models import ModelChoice, adapter_config, load_frozen
from pipeline.policy.shapes import shape_name

BARS = {"3b": 1.0, "7b": 3.0}  # seconds


def measure(choice: ModelChoice, config: RunConfig, gpu: bool) -> list[Row]:
    """Rows for the model of `choice`; bars hold for the shapes in `BARS` on a GPU."""
    from adapters import inject
    from adapters.factors import RESIDUAL_LIMIT, cached_factors, compute_factors

    loaded: list[Any] = []
    load = once(lambda: loaded.extend(load_frozen(choice, config)))
    model = loaded[0]
    shape = shape_name(model.config.to_dict())
    with tempfile.TemporaryDirectory(prefix="tinylora-bench-") as folder, patch.dict(os.environ, TINYLORA_CACHE=folder):
        first = once(lambda: inject(model, adapter_config(config)))
        layers = dict(zip(model.tinylora.names, model.tinylora.layers, strict=True))
        frozen = {name: layer.base_layer for name, layer in layers.items()}
        again = once(lambda: compute_factors(frozen, config.rank))
        cached = once(lambda: cached_factors(frozen, config.rank))
    count = f"{len(layers)} modules"
    residual = max(map(_residual, layers.values()))
    return [
        row(f"load by Unsloth, {config.quant}", load, "s"),
        row(f"inject, {count}, no cache", first, "s", at_most=BARS.get(shape or "") if gpu else None),
        row(f"singular pairs of {count} alone, second time", again, "s"),
        row(f"factors of {count} from the cache", cached, "s"),
        row("largest residual of a singular pair", residual, "of σ", at_most=RESIDUAL_LIMIT),
    ]


def _residual(layer: Any) -> float:
    """max over pairs of ‖W v − σ u‖ / σ and ‖Wᵀ u − σ v‖ / σ, in float64."""
    from adapters.base import dense_weight

    weight = dense_weight(layer.base_layer).double()
    left, right = layer.left.double(), layer.right.double().mT
    sigma = left.norm(dim=0)
    ways = (weight @ right - left, weight.mT @ (left / sigma) - right * sigma)
    return max(float((way.norm(dim=0) / sigma).max()) for way in ways)
