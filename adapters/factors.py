"""The frozen frame of an adapter: the top singular pairs of every replaced weight.

A weight is factored as the model computes with it: a 4-bit layer is dequantised first. The solver is a restarted block
Krylov iteration (Musco and Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
Decomposition", 2015), which needs only products with W and Wᵀ, so it runs batched on the model's device; each pair's
residual is checked. Signs of singular vectors are arbitrary: here the largest entry of each left vector is positive.
Left out: anything but plain matrices.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.config import AdapterError

RESIDUAL_GOAL = 1e-6  # wanted of ‖W v − σ u‖ / σ, the floor of float32
RESIDUAL_LIMIT = 1e-3  # accepted where the spectrum is so flat that the goal takes more than GOAL_RESTARTS
GOAL_RESTARTS = 8
KRYLOV_BLOCKS = 4
OVERSAMPLING = 6
MAX_RESTARTS = 60
BATCH_ELEMENTS = 1 << 28  # weights factored together hold at most this many elements (1 GB of float32)
FINGERPRINT_SAMPLES = 4096


@dataclass(frozen=True)
class Factors:
    """Rank-r frame of one weight (out, in): `left` = U Σ (out, r) and `right` = Vᵀ (r, in), both float32."""

    left: Tensor
    right: Tensor

    @property
    def sigma(self) -> Tensor:
        """Singular values (r,), the norms of the left columns."""
        return self.left.norm(dim=0)


def is_quantized(linear: nn.Module) -> bool:
    return getattr(getattr(linear, "weight", None), "quant_state", None) is not None


def dense_weight(linear: nn.Module) -> Tensor:
    """The matrix (out, in) that a linear layer computes with, in its compute dtype."""
    weight = linear.weight
    if not is_quantized(linear):
        return weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state).reshape(weight.quant_state.shape)


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Hex digest of named matrices, from a strided sample of each one's values: equal bases, equal digests.

    Values are compared as float32, so a checkpoint stored in bf16 has one digest whether it is loaded in bf16 or
    float32.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in weights:
        stride = max(1, weight.numel() // FINGERPRINT_SAMPLES)
        sample = weight.reshape(-1)[::stride].float().cpu().contiguous()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _products(weight: Tensor, block: Tensor) -> Tensor:
    return weight @ (weight.mT @ block)


def _orthonormal(block: Tensor, basis: Tensor | None = None) -> Tensor:
    """Orthonormal columns of `block`, against `basis` too; projected twice, which float32 needs."""
    if basis is not None:
        for _ in range(2):
            block = block - basis @ (basis.mT @ block)
    return torch.linalg.qr(block).Q


def truncated_svd(weights: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Top `rank` singular triplets of a batch of matrices.

    weights: (n, out, in) float32. Returns left vectors (n, out, r), values (n, r), right vectors (n, r, in), signs
    canonical. Raises `AdapterError` if rank exceeds the matrices or a relative residual ‖W v − σ u‖ / σ stays above
    `RESIDUAL_LIMIT`.
    """
    n, rows, columns = weights.shape
    limit = min(rows, columns)
    if rank > limit:
        raise AdapterError(f"rank {rank} exceeds the size of a {rows} × {columns} weight; use at most {limit}")
    block_size, blocks = rank + OVERSAMPLING, KRYLOV_BLOCKS
    if limit <= block_size * blocks:  # the Krylov space would be everything
        block_size, blocks = limit, 1
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(columns, block_size, generator=generator).to(weights.device).expand(n, -1, -1)
    block = _orthonormal(weights @ start)
    residual = torch.full((n, rank), torch.inf)
    for restart in range(MAX_RESTARTS):
        basis = block
        for _ in range(blocks - 1):
            block = _orthonormal(_products(weights, block), basis)
            basis = torch.cat([basis, block], dim=-1)
        basis = _orthonormal(basis)
        projected = (basis.mT @ weights).double()  # (n, m, in), Rayleigh-Ritz in the Krylov space
        _, vectors = torch.linalg.eigh(projected @ projected.mT)  # squares the condition number, hence double
        ritz = basis @ vectors.flip(-1)[..., :block_size].float()  # (n, out, block), largest first
        left = ritz[..., :rank]
        right = weights.mT @ left  # (n, in, r)
        sigma = right.norm(dim=-2)
        right = right / sigma.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-2)
        error = (weights @ right - left * sigma.unsqueeze(-2)).norm(dim=-2)
        residual = error / sigma.clamp(min=torch.finfo(torch.float32).tiny)
        if float(residual.max()) <= (RESIDUAL_GOAL if restart < GOAL_RESTARTS else RESIDUAL_LIMIT):
            break
        block = _orthonormal(_products(weights, ritz))
    else:
        raise AdapterError(
            f"the singular pairs of a {rows} × {columns} weight did not converge (relative residual "
            f"{residual.max():.1e}, at most {RESIDUAL_LIMIT:.0e}); lower --rank"
        )
    signs = left.gather(-2, left.abs().argmax(dim=-2, keepdim=True)).sign()
    return left * signs, sigma, (right * signs).mT


def compute_factors(linears: Mapping[str, nn.Module], rank: int) -> dict[str, Factors]:
    """Factors of every named linear layer, equal shapes batched on the layers' own device; results on the CPU."""
    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, linear in linears.items():
        shape = tuple(linear.weight.quant_state.shape) if is_quantized(linear) else tuple(linear.weight.shape)
        by_shape[shape].append(name)
    factors: dict[str, Factors] = {}
    for (rows, columns), names in by_shape.items():
        size = max(1, BATCH_ELEMENTS // (rows * columns))
        for chunk in (names[i : i + size] for i in range(0, len(names), size)):
            weights = torch.stack([dense_weight(linears[name]).float() for name in chunk])
            left, sigma, right = truncated_svd(weights, rank)
            scaled = (left * sigma.unsqueeze(-2)).cpu()
            for i, name in enumerate(chunk):
                factors[name] = Factors(scaled[i].contiguous(), right[i].cpu().contiguous())
    return {name: factors[name] for name in linears}


def cache_folder() -> Path:
    """Where derived files live: $TINYLORA_CACHE, else tinylora-coder in the user's cache folder."""
    root = os.environ.get("TINYLORA_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinylora-coder"


def with_lapack_signs(linears: Mapping[str, nn.Module], factors: dict[str, Factors]) -> dict[str, Factors]:
    """The same factors with the signs that a full `torch.linalg.svd` in float32 on the CPU gives: minutes for 3B.

    Needed only to read checkpoints trained on such factors with projections that mix singular pairs.
    """
    signed = {}
    for name, factor in factors.items():
        weight = dense_weight(linears[name]).float().cpu()
        left = torch.linalg.svd(weight, full_matrices=False).U[:, : len(factor.right)]
        signs = (left * factor.left).sum(dim=0).sign()
        signed[name] = Factors(factor.left * signs, (factor.right.mT * signs).mT.contiguous())
    return signed


def cached_factors(
    linears: Mapping[str, nn.Module], rank: int, lapack_signs: bool = False
) -> tuple[dict[str, Factors], str, Path]:
    """Factors from the disk cache, computed and stored on the first use.

    Returns the factors, the base model's fingerprint and the cache file (tensors `<name>.left`, `<name>.right`).
    """
    from safetensors.torch import load_file, save_file

    base = fingerprint((name, dense_weight(linear)) for name, linear in linears.items())
    identity = json.dumps([base, rank, list(linears), *(["lapack"] * lapack_signs)])
    key = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    path = cache_folder() / f"factors-{key}.safetensors"
    if not path.is_file():
        factors = compute_factors(linears, rank)
        factors = with_lapack_signs(linears, factors) if lapack_signs else factors
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        tensors = {f"{n}.{part}": getattr(f, part) for n, f in factors.items() for part in ("left", "right")}
        save_file(tensors, temporary)
        os.replace(temporary, path)
        return factors, base, path
    stored = load_file(path)
    return {n: Factors(stored[f"{n}.left"], stored[f"{n}.right"]) for n in linears}, base, path
