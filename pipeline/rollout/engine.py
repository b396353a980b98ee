"""What a rollout engine is: it takes `v`, samples completions, and hands each one on as it finishes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.rollout.sampling_support import WHOLE, Truncation
from storage.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


BEYOND = (  # why there are numbers that are none
    "the policy computes numbers beyond those of its type, or its weights hold NaN; with --dtype float16 use "
    "--dtype bfloat16"
)


class EngineError(UserError, RuntimeError):
    """An engine that cannot start or no longer holds the trainer's policy."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy. `seed` fixes the random numbers of one `generate` call. `truncation`
    is applied at the temperature. `number` tells a row's number among all completions of a generation of which the
    engine draws only some: with it the random numbers of a completion depend on `seed` and its number alone, not on
    who draws it and beside what."""

    max_tokens: int
    temperature: float = 1.0
    seed: int = 0
    truncation: Truncation = WHOLE
    number: Callable[[int], int] | None = None

    def row_seed(self, row: int) -> int:
        """Of one row's own random numbers, below 2^63."""
        return ((self.seed << 24) + (row if self.number is None else self.number(row))) % 2**63


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion.

    token_ids: with the end-of-sequence token if it ended. log_probs: of each sampled token under the sampling
    distribution (at the sampling temperature, truncated and renormalised), same length.
    """

    token_ids: list[int]
    log_probs: list[float]


def with_numbers(completions: list[Completion]) -> list[Completion]:
    """The completions. Raises `EngineError` where a log-probability is no number, as happens when the policy's own
    numbers are beyond those of the type that it computes in."""
    bad = sum(math.isnan(sum(completion.log_probs)) for completion in completions)
    if bad:
        raise EngineError(
            f"{bad} of {len(completions)} completions have log-probabilities that are no numbers: {BEYOND}"
        )
    return completions


def sampled_entropy(completions: Sequence[Completion]) -> float:
    """Nats per token, estimated by minus the mean log-probability of all sampled tokens. Unbiased for the mean entropy
    of the policy at the places that it reached; it needs no pass over the vocabulary."""
    log_probs = [value for completion in completions for value in completion.log_probs]
    return -sum(log_probs) / max(1, len(log_probs))


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """seconds: wall time until the policy has changed. kept: computes the share ⟨W' − W, ΔW⟩ / ⟨ΔW, ΔW⟩ of the update
    that survived the merge, which takes longer than merging; to be called before the next refresh."""

    seconds: float
    kept: Callable[[], float]


OnFinished = Callable[[int, Completion], None]
More = Callable[[bool], list[list[int]]]


def no_more(idle: bool) -> list[list[int]]:
    """The `More` of a generation whose prompts are all known when it starts."""
    return []


class RolloutEngine(Protocol):
    """Samples from the policy. The policy is a function of the frozen base and the last refreshed `v`."""

    name: str

    def refresh(self, v: Tensor) -> RefreshReport:
        """Make `v` (groups, u) the policy. Two refreshes to the same `v` give the same bits; zeros give the base."""
        ...

    def generate(
        self, prompts: list[list[int]], sampling: Sampling, on_finished: OnFinished, more: More = no_more
    ) -> list[Completion]:
        """One completion for every row of token ids, in order.

        `on_finished(row, completion)` is called as soon as a row is done, while others are still being generated.
        `more(idle)` is called after rows were done and returns prompts of further rows; idle tells that nothing is left
        to generate, and then no rows end the generation.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...
