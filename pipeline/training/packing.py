"""Many completions in one row of tokens, each prompt once: what a forward pass reads, and where its results belong.

Completions whose prompts are equal share them. Nothing is padded. A completion's last token predicts nothing and is
left out. A completion that is alone with its prompt stands right behind it, as one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from pipeline.training.attention import Layout, Spans

Tokens = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Pack:
    """B completions of n tokens in all, in a row of N that are computed.

    ids, positions (N,). lengths (B,) of the completions. places (n,): the position whose hidden state predicts each
    token, tokens (n,), both in the order of rows. owners (N,): the completion, 0 to B - 1, to whose log-probability
    alone a position contributes; positions of shared prompt i have B + i. groups: the completions of each such prompt.
    """

    ids: Tensor
    positions: Tensor
    lengths: Tensor
    places: Tensor
    tokens: Tensor
    owners: Tensor
    groups: list[list[int]]
    layout: Layout

    @property
    def count(self) -> int:
        """How many owners there are."""
        return len(self.lengths) + len(self.groups)


def packed(prompts: Tokens, completions: Tokens, device: Any, *, sharing: Sequence[int] | None = None) -> Pack:
    """The pack of B completions with their prompts, at least one of them with a token. sharing: numbers of the rows
    (B,); equal prompts are shared where these are equal, too. None: wherever prompts are equal."""
    found = _groups(prompts, range(len(prompts)), sharing)
    order = sorted(found, key=lambda rows: len(rows) == 1)  # shared prompts first; stable
    several = [rows for rows in order if len(rows) > 1]
    ids: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    segments: list[int] = []
    behind: list[int] = []
    places: list[list[int]] = [[] for _ in prompts]

    def add(tokens: Sequence[int], position: int, owner: int) -> int:
        """A segment; returns where it begins."""
        start = len(ids)
        ids.extend(tokens)
        positions.extend(range(position, position + len(tokens)))
        owners.extend([owner] * len(tokens))
        segments.append(len(tokens))
        return start

    ends = []
    for number, rows in enumerate(order):
        prompt = prompts[rows[0]]
        if len(rows) > 1:
            add(prompt, 0, len(prompts) + number)
            ends.append(len(ids) - 1)
        else:
            (row,) = rows
            start = add([*prompt, *completions[row][:-1]], 0, row) + len(prompt) - 1
            places[row] = list(range(start, start + len(completions[row])))
    for rows, end in zip(several, ends, strict=True):
        before = len(ids)
        for row in rows:
            start = add(completions[row][:-1], len(prompts[row]), row)
            places[row] = [end, *range(start, len(ids))][: len(completions[row])]
        behind.append(len(ids) - before)

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long).to(device, non_blocking=True)

    layout = Layout(
        Spans.of(segments, device),
        Spans.of([len(prompts[rows[0]]) for rows in several], device),
        Spans.of(behind, device),
    )
    return Pack(
        tensor(ids),
        tensor(positions),
        tensor([len(completion) for completion in completions]),
        tensor([place for row in places for place in row]),
        tensor([token for completion in completions for token in completion]),
        tensor(owners),
        several,
        layout,
    )


def _groups(prompts: Tokens, rows: Sequence[int], sharing: Sequence[int] | None) -> list[list[int]]:
    """Rows that share a prompt together, in the order of each group's first."""
    groups: dict[Any, list[int]] = {}
    for row in rows:
        groups.setdefault((sharing[row] if sharing else None, tuple(prompts[row])), []).append(row)
    return list(groups.values())


def within_budget(
    prompts: Tokens, completions: Tokens, budget: int, *, sharing: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Rows with tokens, cut so that the pack of each part computes at most `budget` tokens, or is a single row. A group
    is cut only if it is larger than that. sharing: as of `packed`."""
    part: list[int] = []
    used = 0
    for rows in _groups(prompts, [row for row, tokens in enumerate(completions) if len(tokens)], sharing):
        prompt = len(prompts[rows[0]])
        whole = prompt + sum(len(completions[row]) - 1 for row in rows)
        if part and used + whole > budget:
            yield part
            part, used = [], 0
        used += prompt
        for row in rows:
            own = len(completions[row]) - 1
            if part and used + own > budget:
                yield part
                part, used = [], prompt
            part.append(row)
            used += own
    if part:
        yield part


def token_lists(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The token ids of rows (B, T) where mask (B, T) is set."""
    return [list(compress(*row)) for row in zip(ids.tolist(), mask.tolist(), strict=True)]
