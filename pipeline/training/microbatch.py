"""How a scored batch is cut for the training pass, without changing the gradient.

A row's loss without a KL term is proportional to its advantage. So rows without one are left out, and a completion that
was drawn several times in a group is computed once with the sum of its advantages. What remains is cut by a token
budget, in which a prompt counts once for all its completions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.training.packing import Pack, packed, token_lists, within_budget

# Loss types whose value is a sum over rows divided by a constant of the whole batch need no weight when the batch is
# cut; those that average over rows are weighted by the share of rows, and bnpo by the share of tokens.
SUMMED_LOSSES = ("dapo", "cispo")


def distinct_rows(group: Tensor, completion_ids: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the first of all equal rows; advantages (B,) with the sum of equal ones at the first; and how many
    rows (B,) each of the first stands for, 0 for all others.

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
    zeros = torch.zeros_like(advantages)
    sums, counts = (zeros.index_add(0, same, values)[same[first]] for values in (advantages, torch.ones_like(zeros)))
    return first, zeros.index_copy(0, first, sums), zeros.index_copy(0, first, counts)


def spread_rows(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` rows, evenly spread, so that groups, whose rows follow one another, share alike."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def rows_of(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """These rows of a batch: a tensor whose first size is the number of rows is cut, anything else is handed on."""
    count = len(batch["completion_mask"])
    return {k: x[rows] if isinstance(x, Tensor) and x.dim() and len(x) == count else x for k, x in batch.items()}


def micro_batches(
    batch: dict[str, Any], budget: int, loss_type: str, *, every_row: bool
) -> tuple[list[tuple[dict[str, Any], float]], float]:
    """Parts of TRL's scored batch, each with the weight of its loss, and the share of rows that have an advantage and
    are not masked whole. Parts have `draws` (B,), too: how many completions of the batch a row stands for.

    batch: with `group` (B,), which tells the rows of one group of completions from those of others. budget: tokens that
    are computed per part. every_row: keep rows without an advantage, for a loss with a KL term or an entropy
    bonus; those that are masked whole are never kept. Of a batch that is a part of another, `num_rows_in_batch` and
    `num_items_in_batch` (tokens) are of the whole one, and so are weights and share.
    """
    own, tokens = len(batch["completion_ids"]), int(batch["num_items_in_batch"])
    trained = (batch["advantages"] != 0) & batch["completion_mask"].any(dim=1)
    count = int(batch.get("num_rows_in_batch", own))
    if every_row:
        chosen = torch.arange(own, device=batch["completion_ids"].device)
        batch = batch | {"draws": torch.ones_like(batch["advantages"])}
    else:
        chosen, summed, draws = distinct_rows(batch["group"], batch["completion_ids"], batch["advantages"])
        batch = batch | {"advantages": summed, "draws": draws}
        chosen = chosen[summed[chosen] != 0]
    chosen = chosen[batch["completion_mask"][chosen].any(dim=1)]
    parts = []
    groups = batch["group"][chosen].tolist()
    for index in within_budget(*prompts_and_completions(batch, chosen), budget, sharing=groups):
        rows = chosen[index]
        part = rows_of(batch, rows)
        if loss_type in SUMMED_LOSSES:
            weight = 1.0
        elif loss_type == "bnpo":
            weight = int(part["completion_mask"].sum()) / tokens
        else:
            weight = len(rows) / count
        parts.append((part, weight))
    return parts, int(trained.sum()) / count


def prompts_and_completions(batch: dict[str, Any], rows: Any = slice(None)) -> tuple[list[list[int]], list[list[int]]]:
    """The token ids of prompts and completions of rows of TRL's batch, all unless told, without padding."""
    prompts, completions = (
        token_lists(batch[f"{name}_ids"][rows], batch[f"{name}_mask"][rows]) for name in ("prompt", "completion")
    )
    return prompts, completions


def packed_part(part: dict[str, Any]) -> Pack:
    """The pack of all rows of a part of TRL's batch. Two groups share no prompt: what flows back through one belongs to
    a group."""
    return packed(*prompts_and_completions(part), part["completion_ids"].device, sharing=part["group"].tolist())
