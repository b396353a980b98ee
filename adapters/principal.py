"""Projections along which the base policy itself varies most: P_i from the Fisher matrix of its own completions.

For the entries of all R (modules · r² numbers θ) a sampled completion has the score s = ∇_θ log π(completion), and
F = E[s sᵀ] tells how far the policy moves for a change of θ: KL = ½ dθᵀ F dθ. Random P spread `u` scalars over all
entries, most of which hardly move the policy. Here P_1 … P_u are the leading principal components of the scores, as EVA
(arXiv 2410.07170) takes those of activations for LoRA's factors. No reward enters, so what is learned still stands in
`v` alone.

Entries are scaled to unit variance first: they differ by orders of magnitude between layers. A completion longer than
the median score is shortened to it, because a few garbled ones would else be the components. The components are scaled
so that F is close to the identity in `v`: ½ |v|² is about the KL from the base in nats a completion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adapters.config import AdapterError
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
    bank.undo_scale(rows)
    try:
        yield rows
    finally:
        bank.rows = bank.owners = None
        for layer, kept in zip(bank.layers, before, strict=True):
            layer.projections, layer.group, layer.group_index = kept


def principal_projections(scores: Tensor, bank: TinyLoRA) -> tuple[Tensor, float]:
    """P (modules, u, r, r) float32 from scores (completions, modules, r²), and the share of their variance it spans.

    Every group of modules has components of its own. Raises `AdapterError` where there are fewer than `u`.
    """
    _, modules, entries = scores.shape
    u, rank = bank.config.u, bank.config.rank
    projections = torch.zeros(modules, u, entries, dtype=torch.float32, device=scores.device)
    spanned = total = 0.0
    for group in range(bank.config.groups):
        members = [index for index, layer in enumerate(bank.layers) if layer.group == group]
        components, share = leading_components(scores[:, members].flatten(1).double(), u)
        projections[members] = components.view(u, len(members), entries).transpose(0, 1).float()
        spanned, total = spanned + share * len(members), total + len(members)
    return projections.view(modules, u, rank, rank), spanned / total


def leading_components(scores: Tensor, wanted: int) -> tuple[Tensor, float]:
    """The leading components (wanted, entries) of scores (completions, entries), each with unit variance of
    scores · component, and their share of the variance of scaled entries."""
    most = min(scores.shape)
    if wanted > most:
        raise AdapterError(
            f"{wanted} principal projections of {scores.shape[0]} completions and {scores.shape[1]} entries; use at "
            f"most {most} scalars a group, a larger rank, or projections normal"
        )
    scale = scores.square().mean(dim=0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
    scaled = scores * inverse
    lengths = scaled.norm(dim=1, keepdim=True)
    clipped = scaled * (lengths.median() / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)).clamp(max=1)
    if len(clipped) < clipped.shape[1]:  # the same components by the smaller of the two Gram matrices
        values, rows = torch.linalg.eigh(clipped @ clipped.mT / len(clipped))
        vectors = nn.functional.normalize(clipped.mT @ rows[:, -wanted:], dim=0)
    else:
        values, vectors = torch.linalg.eigh(clipped.mT @ clipped / len(clipped))
    leading = vectors[:, -wanted:].flip(1)  # (entries, wanted)
    leading = leading * leading.gather(0, leading.abs().argmax(dim=0, keepdim=True)).sign()
    variance = (scaled @ leading).square().mean(dim=0)
    share = float(values[-wanted:].sum() / values.sum())
    return (leading * inverse.unsqueeze(1) / variance.sqrt()).mT, share
