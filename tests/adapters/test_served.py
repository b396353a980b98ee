"""What was made from a vector is given out only as long as the vector is what it was made from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from adapters.served import MadeFrom, count_steps


def fused_step(v: torch.nn.Parameter) -> None:
    """A step that autograd does not count."""
    optimizer = torch.optim.AdamW([v], lr=0.1, fused=True)
    count_steps(optimizer, v)
    v.grad = torch.ones_like(v)
    optimizer.step()


def copied(v: torch.nn.Parameter) -> None:
    with torch.no_grad():
        v.detach().copy_(torch.ones_like(v))


def moved(v: torch.nn.Parameter) -> None:
    v.data = v.data.double()


@pytest.mark.parametrize("edit", [fused_step, copied, moved])
def test_an_edit_makes_stale(edit: Callable[[torch.nn.Parameter], None]) -> None:
    v = torch.nn.Parameter(torch.zeros(2, 4))
    made: MadeFrom[str] = MadeFrom()
    assert made.at(v) is None
    assert made.put(v.detach(), "first") == "first"
    assert made.at(v) == made.at(v.detach()) == "first"
    assert made.at(v.detach().clone()) is None  # of another vector with the same numbers
    edit(v)
    assert made.at(v) is None
    made.put(v, "second")
    assert made.at(v) == "second"
    made.drop()
    assert made.at(v) is None
