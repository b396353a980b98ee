"""Packs: every token where it belongs, prompts once, and no more tokens than the budget."""

from __future__ import annotations

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.packing import packed, token_lists, within_budget

PROMPTS = [[1, 2, 3], [4], [5, 6]]
ROWS = st.lists(st.tuples(st.sampled_from(PROMPTS), st.lists(st.integers(10, 30), max_size=6)), min_size=1, max_size=20)


SHARING = st.sampled_from([1, 2, 99])  # so many rows after one another may share a prompt, of 20 at most


def computed(rows: list[tuple[list[int], list[int]]], numbers: list[int]) -> int:
    """Tokens that a pass over these rows computes."""
    prompts = {(number, tuple(prompt)) for number, (prompt, _) in zip(numbers, rows, strict=True)}
    return sum(len(prompt) for _, prompt in prompts) + sum(len(completion) - 1 for _, completion in rows)


@given(ROWS, st.integers(1, 60), SHARING)
@settings(deadline=None)
def test_parts_hold_every_row_with_tokens_once_within_the_budget(rows, budget: int, size: int) -> None:
    prompts, completions = (list(part) for part in zip(*rows, strict=True))
    numbers = [row // size for row in range(len(rows))]
    parts = list(within_budget(prompts, completions, budget, sharing=numbers))
    assert size < 99 or parts == list(within_budget(prompts, completions, budget))
    assert sorted(row for part in parts for row in part) == [row for row, (_, tokens) in enumerate(rows) if tokens]
    for part in parts:
        own = [numbers[row] for row in part]
        tokens = computed([rows[row] for row in part], own)
        assert len(part) == 1 or tokens <= budget
        chosen = [prompts[row] for row in part], [completions[row] for row in part]
        assert packed(*chosen, "cpu", sharing=own).ids.numel() == tokens
    for number, prompt in product(set(numbers), PROMPTS):
        group = [row for row, (own, kept) in enumerate(rows) if (numbers[row], own) == (number, prompt) and kept]
        if group and computed([rows[row] for row in group], [0] * len(group)) <= budget:
            assert sum(bool(set(part) & set(group)) for part in parts) == 1, "a group that fits was cut"


@given(ROWS.filter(lambda rows: any(tokens for _, tokens in rows)), SHARING)
@settings(deadline=None)
def test_every_token_is_read_after_what_stands_before_it(rows, size: int) -> None:
    """What each predicting position can see, by its segment and the prompt before it, is the row up to there."""
    rows = [row for row in rows if row[1]]
    prompts, completions = zip(*rows, strict=True)
    numbers = [row // size for row in range(len(rows))]
    pack = packed(prompts, completions, "cpu", sharing=numbers)
    ids, layout = pack.ids.tolist(), pack.layout
    seen: list[list[int]] = []
    start, prompt_of = 0, {}
    for length in layout.segments.lengths:
        seen += [ids[start : start + i + 1] for i in range(length)]
        start += length
    start, first = 0, len(ids) - layout.behind.tokens
    for length, behind in zip(layout.prompts.lengths, layout.behind.lengths, strict=True):
        for place in range(first, first + behind):
            seen[place] = ids[start : start + length] + seen[place]
            prompt_of[place] = start
        start, first = start + length, first + behind
    assert [len(context) - 1 for context in seen] == pack.positions.tolist()
    places = iter(zip(pack.places.tolist(), pack.tokens.tolist(), strict=True))
    for row, (prompt, completion) in enumerate(rows):
        for index, token in enumerate(completion):
            place, predicted = next(places)
            assert predicted == token and seen[place] == prompt + completion[:index]
            alone = list(zip(numbers, prompts, strict=True)).count((numbers[row], prompt)) == 1
            owner = int(pack.owners[place])
            assert owner == row if index or alone else row in pack.groups[owner - len(rows)]
    assert pack.count == int(pack.owners.max()) + 1 or not pack.groups


def test_token_lists_leave_padding_out() -> None:
    ids, mask = torch.tensor([[0, 0, 5], [7, 8, 9]]), torch.tensor([[0, 0, 1], [1, 1, 0]])
    assert token_lists(ids, mask) == [[5], [7, 8]]
