"""The measurements behind `python scripts/bench.py refresh`: how long another `v` takes to reach the engine's weights.

All on one running engine and its own parameters. The merge from the trainer's frozen weights is what training does;
compared with a merge from dense bf16 weights, a plain copy of those bytes (the floor of a dense merge), an `addmm`
per matrix, and TRL's own `sync_weights`: of a plain model, and of one with a LoRA adapter of the same rank, which it
merges, sends and takes out again, as it does for every policy that is an adapter.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from pipeline.bench.contenders import bare_generation, load_plain, time_sync
from pipeline.bench.form import Row, row
from pipeline.bench.timing import device_seconds, once
from pipeline.config import RunConfig
from pipeline.policy.loading import load_policy
from pipeline.policy.models import ModelChoice
from pipeline.policy.shapes import shape_name

BAR_SHAPE, BAR_MS, BAR_SYNC = "3b", 5.0, 1 / 30
SCALE = 0.01  # rms of the vectors that are refreshed to


def measure(choice: ModelChoice, config: RunConfig, gpu: bool) -> list[Row]:
    """Rows in milliseconds; the bars hold for a 3B shape on a GPU."""
    import torch

    from adapters.base import dense
    from adapters.merge import ROUNDINGS, delta_weight

    policy = load_policy(choice, config)
    bank, engine = policy.model.tinylora, policy.engine
    barred = gpu and shape_name(policy.model.config.to_dict()) == BAR_SHAPE
    worker: Any = engine.worker  # type: ignore[attr-defined]
    weights = worker.tinylora_weights
    count = sum(weight.numel() for weight in weights)
    v = SCALE * torch.randn(bank.v.shape, generator=torch.Generator().manual_seed(0))
    mixings = bank.mixings_of(v.to(bank.v.device))
    what = f"{len(weights)} matrices, {count / 1e9:.3g} G parameters"
    if gpu:
        torch.cuda.set_per_process_memory_fraction(1.0)  # dense copies and a second model are no part of a run
    rows: list[Row] = []

    def add(title: str, seconds: float, **options: Any) -> None:
        rows.append(row(title, 1000 * seconds, "ms", **options))

    with torch.inference_mode():
        bases = [dense(base).to(weights[0].dtype).clone() for base in bank.bases()]
        sources = {config.quant or "none": bank.bases(), "dense": bases}
        for name, source in sources.items():
            for rounding in ROUNDINGS:
                merger = bank.merger_into(weights, rounding, source)
                seconds = device_seconds(partial(merger.every, mixings))
                add(f"merge from {name} weights, {rounding}: {what}", seconds, at_most=BAR_MS if barred else None)
        copy = device_seconds(lambda: torch._foreach_copy_(weights, bases))
        add("copy of the dense weights", copy)
        lefts = [delta_weight(layer.left, r, torch.eye(len(r), device=r.device)).to(weights[0].dtype)
                 for layer, r in zip(bank.layers, mixings, strict=True)]  # fmt: skip
        rights = [layer.right.to(weights[0].dtype) for layer in bank.layers]

        def addmm() -> None:
            for weight, base, left, right in zip(weights, bases, lefts, rights, strict=True):
                torch.addmm(base, left, right, out=weight)

        add("an addmm for every matrix", device_seconds(addmm))
        call = device_seconds(lambda: engine.refresh(v), repeats=5)
        add("whole refresh of the engine: RPC, merge, prefix cache, surviving share", call)
        seconds = statistics.median(once(lambda: worker.tinylora_refresh(v.tolist())) for _ in range(11))
    plain = load_plain(choice.location)
    sync = time_sync(bare_generation(plain, engine.llm))  # type: ignore[attr-defined]
    bar = BAR_SYNC if barred else None
    what = "refresh as training does it, against TRL's sync_weights"
    add(f"{what} of a plain model", seconds, baseline=1000 * sync, at_most=bar)
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(plain, LoraConfig(r=bank.config.rank, target_modules=list(bank.config.targets)))
    sync = time_sync(bare_generation(adapted, engine.llm))  # type: ignore[attr-defined]
    add(f"{what} of a model with an adapter", seconds, baseline=1000 * sync, at_most=bar)
    policy.close()
    return rows
