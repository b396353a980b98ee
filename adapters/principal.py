"""Projections from what the base policy itself does: P_1 makes it surer, P_2 … P_u are along what varies most in it.

For the entries of all R (modules · r² numbers θ) a sampled completion has the score s = ∇_θ log π(completion), and
F = E[s sᵀ] tells how far the policy moves for a change of θ: KL = ½ dθᵀ F dθ. Random P spread `u` scalars over all
entries, most of which hardly move the policy. Here P_2 … P_u are the leading principal components of the scores, as EVA
(arXiv 2410.07170) takes those of activations for LoRA's factors.

P_1 is the natural gradient F⁻¹ h of the mean token's certainty, h = −∇_θ H: of all directions the one along which the
policy gets surest for its KL, the adapter's nearest to a lower temperature. Much of what reinforcement learning does to
a sampled policy is this ("The Entropy Mechanism", arXiv 2505.22617), and the components hold only a part of it. They
are made of what is left of the scores without it, so that F has nothing between the two. No reward enters anywhere:
what is learned still stands in `v` alone, also whether to be surer at all.

Entries are scaled to unit variance first: they differ by orders of magnitude between layers. A completion longer than
the median score is shortened to it, because a few garbled ones would else be the components. The components are scaled
so that F is close to the identity in `v`: ½ |v|² is about the KL from the base in nats a completion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adapters.config import AdapterError
from adapters.fisher import ridged_fisher
from adapters.tinylora import TinyLoRA


@contextmanager
def entry_rows(bank: TinyLoRA, owners: Tensor, count: int) -> Iterator[Tensor]:
    """Within this context token i of a batch computes with row owners[i] of zeros (count, modules, r²) for the entries
    of every R, whose gradients are those of its tokens alone. For `v` = 0."""
    rank = bank.config.rank
    basis = torch.eye(rank * rank, device=bank.v.device).view(-1, rank, rank)
    before = [(layer.projections, layer.group, layer.group_index) for layer in bank.layers]
    for index, layer in enumerate(bank.layers):
        layer.projections, layer.group = basis, index
        layer.group_index = torch.tensor([index], device=bank.v.device)
    bank.rows = rows = torch.zeros(count, len(bank.layers), rank * rank, device=bank.v.device, requires_grad=True)
    bank.owners = owners
    try:
        yield rows
    finally:
        bank.rows = bank.owners = None
        for layer, kept in zip(bank.layers, before, strict=True):
            layer.projections, layer.group, layer.group_index = kept


def principal_projections(scores: Tensor, certainty: Tensor, bank: TinyLoRA) -> tuple[Tensor, float]:
    """P (modules, u, r, r) float32, and the share of the scores' variance that it spans.

    scores (completions, modules, r²): ∇ log π of completions. certainty (modules, r²): −∇ of the mean token's entropy.
    Every group of modules has projections of its own. Raises `AdapterError` where there are fewer than `u`.
    """
    _, modules, entries = scores.shape
    u, rank = bank.config.u, bank.config.rank
    projections = torch.zeros(modules, u, entries, dtype=torch.float32, device=scores.device)
    spanned = total = 0.0
    for group in range(bank.config.groups):
        members = [index for index, layer in enumerate(bank.layers) if layer.group == group]
        components, share = _components(
            scores[:, members].flatten(1).double(), certainty[members].flatten().double(), u
        )
        projections[members] = components.view(u, len(members), entries).transpose(0, 1).float()
        spanned, total = spanned + share * len(members), total + len(members)
    return projections.view(modules, u, rank, rank), spanned / total


def _components(scores: Tensor, certainty: Tensor, wanted: int) -> tuple[Tensor, float]:
    """P of one group as (wanted, entries), each with unit variance of scores · component, and the share of the variance
    of scaled entries that they span; scores (completions, entries), certainty (entries,)."""
    count, size = scores.shape
    if wanted > min(count, size):
        raise AdapterError(
            f"{wanted} principal projections of {count} completions and {size} entries; use at "
            f"most {min(count, size)} scalars a group, a larger rank, or projections normal"
        )
    scale = scores.square().mean(dim=0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
    scaled = scores * inverse
    lengths = scaled.norm(dim=1, keepdim=True)
    clipped = scaled * (lengths.median() / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)).clamp(max=1)
    fisher = clipped.mT @ clipped / count
    surest = torch.linalg.solve(ridged_fisher(fisher, count), certainty * inverse)
    known = torch.nn.functional.normalize(fisher @ surest, dim=0)  # what F has of it
    others = clipped - (clipped @ known).unsqueeze(1) * known
    _, vectors = torch.linalg.eigh(others.mT @ others / count)
    leading = vectors[:, size - (wanted - 1) :].flip(1)
    leading = leading * leading.gather(0, leading.abs().argmax(dim=0, keepdim=True)).sign()
    chosen = torch.cat([surest.unsqueeze(1), leading], dim=1)  # (entries, wanted)
    variance = (scaled @ chosen).square().mean(dim=0)
    basis, _ = torch.linalg.qr(chosen)
    share = float((clipped @ basis).square().sum() / clipped.square().sum())
    return (chosen * inverse.unsqueeze(1) / variance.sqrt()).mT, share
