"""How a batch is shared out for the training pass: whole groups, so that each replica has about as many tokens,
a prompt counted once.

A share is a batch with fewer rows. What a loss is divided by is of the whole batch and goes along as two numbers,
`num_items_in_batch` (tokens) and `num_rows_in_batch`, so the shares' gradients add up to the gradient of the batch.
Which share a group is in follows from the batch alone, not from who drew it, so a step can be repeated.
"""

from __future__ import annotations

from heapq import heappop, heappush

import torch
from torch import Tensor

from pipeline.scale.wire import first_of_each

PROMPT, COMPLETION = "prompt_mask", "completion_mask"


def shares_of(batch: dict[str, Tensor], count: int, *, every_row: bool) -> list[dict[str, Tensor]]:
    """At most `count` shares of TRL's batch, heaviest groups first to the lightest share; none is empty.

    batch: with `group` (B,); tensors whose first size is B are cut, others go to every share. every_row: rows without
    an advantage cost as much as others, which are left out otherwise. Groups with one prompt stay together, since it is
    computed once for all of them.
    """
    places = prompts_of(batch)
    trained = batch[COMPLETION].any(dim=1)
    if not every_row:
        trained = trained & (batch["advantages"] != 0)
    count_of = torch.zeros(int(places.max()) + 1, dtype=torch.long, device=places.device)
    costs = count_of.index_add(0, places, batch[COMPLETION].sum(dim=1) * trained)
    costs += count_of.scatter_reduce(0, places, batch[PROMPT].sum(dim=1) * trained, "amax")
    lightest = [(0, 0, share) for share in range(count)]  # tokens, groups, number
    share_of = torch.zeros_like(costs)
    for cost, index in sorted(((cost, index) for index, cost in enumerate(costs.tolist())), key=lambda one: -one[0]):
        load, held, share = heappop(lightest)
        share_of[index] = share
        heappush(lightest, (load + cost, held + 1, share))
    owner = share_of[places]
    sizes = owner.bincount(minlength=count).tolist()
    rows = owner.argsort(stable=True).split(sizes)
    return [cut_share(batch, own) for own in rows if len(own)]


def prompts_of(batch: dict[str, Tensor]) -> Tensor:
    """The number (B,) of each row's prompt, in the order in which the groups first have them."""
    _, places = batch["group"].unique(return_inverse=True)
    numbers: dict[bytes, int] = {}
    ids = (batch["prompt_ids"] * batch[PROMPT])[first_of_each(places)].cpu().numpy()
    of_groups = [numbers.setdefault(row.tobytes(), len(numbers)) for row in ids]
    return torch.tensor(of_groups, device=places.device)[places]


def cut_share(batch: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """These rows of a batch, without the columns that are padding in all of them."""
    count = len(batch["group"])
    cut = {name: x[rows] if x.dim() and len(x) == count else x for name, x in batch.items()}
    prompts, completions = cut[PROMPT].any(dim=0), cut[COMPLETION].any(dim=0)
    first = int(prompts.int().argmax()) if prompts.any() else 0
    width = int(completions.nonzero().max()) + 1 if completions.any() else 1
    full = completions.shape[0]
    for name, x in cut.items():
        if name.startswith("prompt_"):
            cut[name] = x[:, first:]
        elif x.dim() == 2 and x.shape[1] == full:
            cut[name] = x[:, :width]
    return cut
