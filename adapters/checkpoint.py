"""The adapter on disk: `tinylora.safetensors`, holding `v` and what it takes to mean the same again; under 10 kB where
the projections are drawn from a seed. Principal ones are kept in it: 1.6 MB for 32 of 196 modules of rank 8.

Besides `v` the file keeps the config, the base model's name and fingerprint, and a probe of the factors: for every
module the number aᵀ ΔW b at v = 1, with fixed random a and b. The probe changes with any factor, projection or relative
sign, and is compared with a tolerance, since singular vectors differ in their last bits between machines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adapters.config import PRINCIPAL, AdapterError, TinyLoRAConfig
from adapters.tinylora import TinyLoRA, adapted_layers
from storage.files import write_tensors

FILE_NAME = "tinylora.safetensors"
FORMAT = "tinylora-1"
PROBE_TOLERANCE = 0.02  # of the probe's norm; bf16 factors differ from float32 ones by 0.4 %


@dataclass(frozen=True)
class Checkpoint:
    """v (groups, u) float32 and the circumstances under which it was trained."""

    v: Tensor
    probe: Tensor
    config: TinyLoRAConfig
    base_model: str
    base_fingerprint: str
    projections: Tensor | None = None  # (modules, u, r, r) where no seed gives them


def factor_probe(model: nn.Module) -> Tensor:
    """One float32 number per adapted module, (modules,): aᵀ ΔW b at v = 1. Made once for the projections as they are,
    since every step writes it down."""
    bank: TinyLoRA = model.tinylora
    kept = bank.probe.at(bank.projections)
    if kept is not None:
        return kept
    values = []
    for layer in adapted_layers(model).values():
        generator = torch.Generator().manual_seed(layer.out_features * 1_000_003 + layer.in_features)
        a = torch.randn(layer.out_features, generator=generator) / layer.out_features**0.5
        b = torch.randn(layer.in_features, generator=generator)
        r = layer.projections.sum(dim=0).cpu()
        values.append((a @ layer.left.float().cpu()) @ r @ (layer.right.float().cpu() @ b))
    return bank.probe.put(bank.projections, torch.stack(values))


def save_checkpoint(path: str | Path, model: nn.Module, base_model: str, v: Tensor | None = None) -> Path:
    """Write the model's adapter to `path` (a file, or a folder that gets `tinylora.safetensors`), whole or not at
    all. v (groups, u): in the place of the model's own."""
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    bank: TinyLoRA = model.tinylora
    metadata = {
        "format": FORMAT,
        "config": json.dumps(bank.config.to_dict()),
        "base_model": base_model,
        "base_fingerprint": bank.base_fingerprint,
    }
    vector = bank.v if v is None else v
    tensors = {"v": vector.detach().float().cpu().contiguous(), "probe": factor_probe(model)}
    if bank.config.projections == PRINCIPAL:
        tensors["projections"] = bank.projections.cpu().contiguous()  # type: ignore[operator]
    write_tensors(path, tensors, metadata)
    return path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read an adapter file, or the one in a folder. Raises `AdapterError` for a missing, broken or foreign file."""
    path = Path(path)
    inner = sorted(path.glob(f"*/{FILE_NAME}"), key=lambda file: file.stat().st_mtime)  # of a run that was stopped
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        hint = f"; a folder beside it has one: give {inner[-1].parent}" if inner else ""
        raise AdapterError(f"checkpoint {path}: no such file{hint}")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise AdapterError(f"checkpoint {path}: not a TinyLoRA checkpoint (format {metadata.get('format')!r})")
            fields = json.loads(metadata["config"])
            config = TinyLoRAConfig(**fields)
            checkpoint = Checkpoint(
                v=stored.get_tensor("v"),
                probe=stored.get_tensor("probe"),
                config=config,
                base_model=metadata["base_model"],
                base_fingerprint=metadata["base_fingerprint"],
                projections=stored.get_tensor("projections") if config.projections == PRINCIPAL else None,
            )
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise AdapterError(f"checkpoint {path}: the file is damaged ({error}); restore it or train again") from None
    shape = (checkpoint.config.groups, checkpoint.config.u)
    if checkpoint.v.shape != shape or checkpoint.probe.dim() != 1 or not checkpoint.v.isfinite().all():
        raise AdapterError(
            f"checkpoint {path}: the file is damaged (v is not {shape[0]} x {shape[1]} finite numbers, or the probe is "
            f"not a list); restore it or train again"
        )
    return checkpoint


def load_checkpoint(path: str | Path, model: nn.Module) -> Checkpoint:
    """Set the adapter of an injected `model` from a file.

    Raises `AdapterError` if the file was made for another base, another adapter config or other factors.
    """
    checkpoint = read_checkpoint(path)
    bank: TinyLoRA = model.tinylora
    if checkpoint.config.meaning() != bank.config.meaning():
        raise AdapterError(
            f"checkpoint {path} is for {checkpoint.config}, but the model was adapted with {bank.config}"
        )
    if checkpoint.base_fingerprint != bank.base_fingerprint:
        raise AdapterError(
            f"checkpoint {path} was trained on {checkpoint.base_model} (fingerprint {checkpoint.base_fingerprint}), "
            f"but the loaded weights have fingerprint {bank.base_fingerprint}; load that model with its quantisation"
        )
    if checkpoint.projections is not None:
        bank.set_projections(checkpoint.projections)
    probe = factor_probe(model)
    if probe.shape != checkpoint.probe.shape:
        raise AdapterError(f"checkpoint {path} is for {len(checkpoint.probe)} modules, but the model has {len(probe)}")
    error = (probe - checkpoint.probe).norm() / checkpoint.probe.norm().clamp(min=1e-30)
    if not error <= PROBE_TOLERANCE:
        raise AdapterError(
            f"checkpoint {path} was trained with other factors (they differ by {error:.0%}): here v would mean another "
            f"policy; use the library versions it was trained with, or copy their factor cache"
        )
    with torch.no_grad():
        bank.v.copy_(checkpoint.v)
    return checkpoint
