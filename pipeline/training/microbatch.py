"""How a scored batch is cut for the training pass, without changing the gradient.

A row's loss without a KL term is proportional to its advantage. So rows without one are left out, and a completion that
was drawn several times in a group is computed once with the sum of its advantages. What remains is sorted by length
and cut by a token budget.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.training.logprobs import token_budget_batches

# Loss types whose value is a sum over rows divided by a constant of the whole batch need no weight when the batch is
# cut; those that average over rows are weighted by the share of rows, and bnpo by the share of tokens.
SUMMED_LOSSES = ("dapo", "cispo")


def distinct_rows(group: Tensor, completion_ids: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the first of all equal rows, and advantages (B,) with the sum of equal ones at the first.

    group (B,) integers, completion_ids (B, T), advantages (B,) of any float dtype. Rows are equal where all three are.
    Only then is the sum of their losses the loss of their sum: a clipped loss depends on the sign of the advantage,
    n · min(r A, clip(r) A) = min(r n A, clip(r) n A) for n > 0, so rows of two groups that judge one completion
    differently cannot be added up.
    """
    _, value = torch.unique(advantages, return_inverse=True)
    keys = torch.cat([torch.stack([group, value], dim=1), completion_ids], dim=1)
    _, same = torch.unique(keys, dim=0, return_inverse=True)
    index = torch.arange(len(same), device=same.device)
    first = torch.full_like(index, len(same)).scatter_reduce(0, same, index, "amin")
    first = first[first < len(same)].sort().values
    sums = torch.zeros_like(advantages).index_add(0, same, advantages)
    return first, torch.zeros_like(advantages).index_copy(0, first, sums[same[first]])


def spread_rows(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` rows, evenly spread, so that groups, whose rows follow one another, share alike."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def micro_batches(
    batch: dict[str, Any], budget: int, loss_type: str, *, every_row: bool
) -> tuple[list[tuple[dict[str, Any], float]], float]:
    """Parts of TRL's scored batch, each with the weight of its loss, and the share of rows that they hold.

    batch: with `group` (B,), which tells the rows of one group of completions from those of others. budget: tokens of
    prompt and completion per part. every_row: keep rows without an advantage, for a loss with a KL term or an entropy
    bonus; those that are masked whole are never kept. A tensor whose first size is the number of rows is cut; anything
    else is handed to every part. Of a batch that is a share of another, `num_rows_in_batch` and `num_items_in_batch`
    (tokens) are of the whole one, and so are weights and share.
    """
    lengths = batch["prompt_mask"].sum(dim=1) + batch["completion_mask"].sum(dim=1)
    if every_row:
        chosen = torch.arange(len(lengths), device=lengths.device)
    else:
        chosen, summed = distinct_rows(batch["group"], batch["completion_ids"], batch["advantages"])
        batch = batch | {"advantages": summed}
        chosen = chosen[summed[chosen] != 0]
    chosen = chosen[batch["completion_mask"][chosen].any(dim=1)]
    count, tokens = len(lengths), int(batch["completion_mask"].sum())
    whole_count, whole_tokens = int(batch.get("num_rows_in_batch", count)), int(batch.get("num_items_in_batch", tokens))
    parts = []
    for index in token_budget_batches(lengths[chosen], budget):
        rows = chosen[index]
        part = {k: x[rows] if isinstance(x, Tensor) and x.dim() and len(x) == count else x for k, x in batch.items()}
        if loss_type in SUMMED_LOSSES:
            weight = 1.0
        elif loss_type == "bnpo":
            weight = int(part["completion_mask"].sum()) / whole_tokens
        else:
            weight = len(rows) / whole_count
        parts.append((part, weight))
    return parts, len(chosen) / whole_count
