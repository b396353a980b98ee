"""The frozen frame of an adapter: the top singular pairs of every replaced weight.

A weight is factored as the model computes with it: a 4-bit layer is dequantised first. The pairs come from the Gram
matrix of the smaller side, formed once (products of 16-bit values are exact on tensor cores, sums are float32), and
subspace iteration on it with a Chebyshev filter (Zhou, Saad and others, "Self-consistent-field calculations using
Chebyshev-filtered subspace iteration", 2006), batched over all weights of one size on the model's device. Each pair's
residual is checked against the weight itself. Signs of singular vectors are arbitrary: here the largest entry of
each left vector is positive. Left out: anything but plain matrices.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.base import SIXTEEN_BITS, dense, dense_weight, float32_product, frozen_base
from adapters.config import AdapterError
from storage.cache import cache_root
from storage.files import write_tensors

RESIDUAL_GOAL = 5e-6  # wanted of ‖G x − λ x‖ / λ, just above the floor of float32
RESIDUAL_LIMIT = 1e-3  # accepted where float32 gives no more: beside a value far above, or in a very flat spectrum
SMALL = 32  # the smaller side of a weight that is solved directly, in float64
OVERSAMPLING = 6
MOST_DEGREE = 12  # of the filter between two orthonormalisations
GROWTH = 1e6  # of the largest part of a vector beside the smallest in one filter: float32 has seven digits
FOUND = 1e-5  # ‖G x − λ x‖ / λ of a vector that is found
LEFT = 0.1  # of the least value in the block: what it may leave of its own in the matrix
TINY = torch.finfo(torch.float32).tiny
MAX_RESTARTS = 60
DEPENDENT = 1e-10  # directions of a block below this share of its largest (squared) are dropped
BATCH_ELEMENTS = 1 << 28  # Gram matrices solved together hold at most this many elements (1 GB of float32)
FINGERPRINT_SAMPLES = 4096
SOLVER = "chebyshev"  # of the factors in the cache: another's last digits would be another run


@dataclass(frozen=True)
class Factors:
    """Rank-r frame of one weight (out, in): `left` = U Σ (out, r) and `right` = Vᵀ (r, in), both float32."""

    left: Tensor
    right: Tensor

    @property
    def sigma(self) -> Tensor:
        """Singular values (r,), the norms of the left columns."""
        return self.left.norm(dim=0)


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Hex digest of named matrices, from a strided sample of each one's values: equal bases, equal digests.

    Values are compared as float32, so a checkpoint stored in bf16 has one digest whether it is loaded in bf16 or
    float32.
    """
    headers, samples = [], []
    for name, weight in weights:
        stride = max(1, weight.numel() // FINGERPRINT_SAMPLES)
        headers.append(f"{name}{tuple(weight.shape)}".encode())
        samples.append(weight.reshape(-1)[::stride].to(torch.float32, copy=True))  # a view would keep the matrix
    digest = hashlib.blake2b(digest_size=16)
    values = torch.cat(samples).cpu().split([len(sample) for sample in samples])  # one transfer for all
    for header, sample in zip(headers, values, strict=True):
        digest.update(header)
        digest.update(sample.contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _full_float32() -> Iterator[None]:
    """Float32 products in float32: libraries switch on the matrix units' shorter formats for the whole process."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _gram(weight: Tensor) -> Tensor:
    """W Wᵀ or WᵀW, whichever is smaller, of weights (..., out, in): float32, or float64 where it is solved directly."""
    wide = weight if weight.shape[-2] <= weight.shape[-1] else weight.mT
    if wide.is_cuda and wide.dtype in SIXTEEN_BITS and wide.dim() == 2:
        return float32_product(wide, wide)
    wide = _working(wide)
    return wide @ wide.mT


def _working(weight: Tensor) -> Tensor:
    """In float64 if it is so small that even its least pairs may be asked for, else in float32."""
    return weight.double() if min(weight.shape[-2:]) <= SMALL else weight.float()


def _orthonormal(block: Tensor) -> Tensor:
    """Orthonormal columns of `block`; dependent columns become zero.

    Everything is done twice, which float32 needs. By the eigenvectors of the columns' small Gram matrix (Stathopoulos
    and Wu, "A Block Orthogonalization Procedure with Constant Synchronization Requirements", 2002): a batched
    Householder factorisation would be a hundred times slower on a GPU.
    """
    for _ in range(2):
        columns = block.double()
        gram = columns.mT @ columns
        scale = gram.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).rsqrt()
        values, vectors = torch.linalg.eigh(gram * scale.unsqueeze(-1) * scale.unsqueeze(-2))
        kept = values > DEPENDENT * values[..., -1:]
        inverse = torch.where(kept, values.clamp(min=1e-300).rsqrt(), 0)
        block = block @ (scale.unsqueeze(-1) * vectors * inverse.unsqueeze(-2)).float()
    return block


def _top_eigenvectors(gram: Tensor, rank: int) -> Tensor:
    """The `rank` leading eigenvectors (n, m, r) of positive matrices (n, m, m) float32, largest first."""
    n, size, _ = gram.shape
    width = rank + OVERSAMPLING
    if size <= max(SMALL, 2 * width):
        return torch.linalg.eigh(gram.double())[1].flip(-1)[..., :rank].to(gram.dtype)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, width, generator=generator).to(gram.device).expand(n, -1, -1)
    block = _orthonormal(gram @ start)
    before = math.inf
    for _ in range(MAX_RESTARTS):
        image = gram @ block
        projected = (block.mT @ image).double()  # Rayleigh-Ritz in the block
        values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
        turn, values = vectors.flip(-1).float(), values.flip(-1).float()
        ritz, image = block @ turn, image @ turn
        residual = (image - ritz * values.unsqueeze(-2)).norm(dim=-2) / values.clamp(min=TINY)
        worst = float(residual[:, :rank].max())
        if worst <= RESIDUAL_GOAL or before / 2 < worst <= RESIDUAL_LIMIT / 2:
            break
        before = worst
        block = _orthonormal(_filtered(gram, ritz, values, residual))
    return ritz[..., :rank]


def _filtered(gram: Tensor, ritz: Tensor, values: Tensor, residual: Tensor) -> Tensor:
    """Ritz vectors (n, m, k) after a Chebyshev polynomial of the matrix, in which all below the least of their values
    (n, k), the unwanted part of the spectrum, stays within ±1, and what is above grows.

    A vector that is found, with a value far above, is left as it is and taken out of the matrix: what grows more than
    float32 can hold beside the others would be all that is left of them. Until then the degree is low.
    """
    present = values > DEPENDENT * values[:, :1]
    least = torch.where(present, values, values[:, :1]).amin(dim=1, keepdim=True).clamp(min=TINY)
    found = (residual <= FOUND) & (residual * values <= LEFT * least) & (values > 2 * least)
    largest = float((torch.where(found, least, values) / least).max())
    degree = int(math.acosh(GROWTH) / math.acosh(max(2 * largest - 1, 1 + 1e-6)))
    taken = ritz * torch.where(found, values, 0).unsqueeze(-2)
    half = least.unsqueeze(-1) / 2

    def mapped(x: Tensor) -> Tensor:
        return (gram @ x - taken @ (ritz.mT @ x)) / half - x

    before, now = ritz, mapped(ritz)
    for _ in range(min(degree, MOST_DEGREE) - 1):
        before, now = now, 2 * mapped(now) - before
    return torch.where(found.unsqueeze(-2), ritz, now)


def _triplets(weights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left vectors (..., out, r), values (..., r), right vectors (..., in, r) with canonical signs, and residuals
    ‖W v − σ u‖ / σ (or of the transpose) (..., r), from the smaller side's vectors."""
    tall = weights.shape[-2] > weights.shape[-1]
    across = weights if tall else weights.mT
    other = across @ vectors
    sigma = other.norm(dim=-2)
    safe = sigma.clamp(min=TINY)
    other = other / safe.unsqueeze(-2)
    residual = (across.mT @ other - vectors * sigma.unsqueeze(-2)).norm(dim=-2) / safe
    left, right = (other, vectors) if tall else (vectors, other)
    signs = left.gather(-2, left.abs().argmax(dim=-2, keepdim=True)).sign()
    return left * signs, sigma, right * signs, residual


def _check(residuals: Mapping[str, Tensor]) -> None:
    worst = torch.stack(list(residuals.values())).amax(dim=1)
    if not float(worst.max()) <= RESIDUAL_LIMIT:
        name = list(residuals)[int(worst.nan_to_num(nan=torch.inf).argmax())]
        raise AdapterError(
            f"the singular pairs of {name} did not converge (relative residual {worst.max():.1e}, at most "
            f"{RESIDUAL_LIMIT:.0e}); lower --rank"
        )


def _check_rank(rank: int, shape: tuple[int, ...]) -> None:
    if rank > min(shape):
        raise AdapterError(
            f"rank {rank} exceeds the size of a {shape[0]} × {shape[1]} weight; use at most {min(shape)}"
        )


def compute_factors(linears: Mapping[str, nn.Module], rank: int) -> dict[str, Factors]:
    """Factors of every named linear layer, on the layers' own device; those with equal smaller sides are solved
    together. Raises `AdapterError` if rank exceeds a weight or a relative residual ‖W v − σ u‖ / σ stays above
    `RESIDUAL_LIMIT`."""
    bases = {name: frozen_base(linear) for name, linear in linears.items()}
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, base in bases.items():
        _check_rank(rank, tuple(base.shape))
        by_size[min(base.shape)].append(name)
    factors: dict[str, Factors] = {}
    residuals: dict[str, Tensor] = {}
    with _full_float32():
        for size, names in by_size.items():
            count = max(1, BATCH_ELEMENTS // size**2)
            for chunk in (names[i : i + count] for i in range(0, len(names), count)):
                vectors = _top_eigenvectors(torch.stack([_gram(dense(bases[name])) for name in chunk]), rank)
                for name, small in zip(chunk, vectors, strict=True):
                    left, sigma, right, residual = _triplets(_working(dense(bases[name])), small)
                    factors[name] = Factors((left * sigma).float().contiguous(), right.mT.float().contiguous())
                    residuals[name] = residual.float()
    _check(residuals)
    return {name: factors[name] for name in linears}


def with_lapack_signs(linears: Mapping[str, nn.Module], factors: dict[str, Factors]) -> dict[str, Factors]:
    """The same factors with the signs that a full `torch.linalg.svd` in float32 on the CPU gives: minutes for 3B.

    Needed only to read checkpoints trained on such factors with projections that mix singular pairs.
    """
    signed = {}
    for name, factor in factors.items():
        weight = dense_weight(linears[name]).float().cpu()
        left = torch.linalg.svd(weight, full_matrices=False).U[:, : len(factor.right)].to(factor.left.device)
        signs = (left * factor.left).sum(dim=0).sign()
        signed[name] = Factors(factor.left * signs, (factor.right.mT * signs).mT.contiguous())
    return signed


def cached_factors(
    linears: Mapping[str, nn.Module], rank: int, lapack_signs: bool = False
) -> tuple[dict[str, Factors], str, Path]:
    """Factors from the disk cache, computed and stored on the first use.

    Returns the factors, the base model's fingerprint and the cache file (tensors `<name>.left`, `<name>.right`).
    """
    from safetensors.torch import load_file

    base = fingerprint((name, dense_weight(linear)) for name, linear in linears.items())
    identity = json.dumps([SOLVER, base, rank, list(linears), *(["lapack"] * lapack_signs)])
    key = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    path = cache_root() / f"factors-{key}.safetensors"
    if not path.is_file():
        factors = compute_factors(linears, rank)
        factors = with_lapack_signs(linears, factors) if lapack_signs else factors
        write_tensors(path, {f"{n}.{part}": getattr(f, part) for n, f in factors.items() for part in ("left", "right")})
        return factors, base, path
    stored = load_file(path)
    return {n: Factors(stored[f"{n}.left"], stored[f"{n}.right"]) for n in linears}, base, path
