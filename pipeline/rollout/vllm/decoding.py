"""Sequences that decode together, as arrays with one entry for each of them.

In a step in which each of them takes one token, all that vLLM keeps of a sequence changes alike: one token more is
computed, on its way or known. Hundreds of objects a step take longer than the step takes a fast GPU, so here the counts
are arrays and the tokens a matrix. The objects are brought up to date when anyone reads them: that of a sequence when
it ends, all before a step of vLLM's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

STEPS = 256  # whose tokens are held at most


class DecodingRows:
    """A row for each of vLLM's `requests`, whose tokens are all computed but for the last one, which is known or on
    its way.

    longest: tokens of a sequence at most. rows: of the sequences that the next step has a token for; names: theirs.
    """

    def __init__(self, requests: Sequence[Any], longest: int) -> None:
        def of_each(value: Callable[[Any], int]) -> np.ndarray:
            return np.array([value(request) for request in requests], dtype=np.int64)

        self._requests = requests
        self._row_of = {request.request_id: row for row, request in enumerate(requests)}
        self.prompt = of_each(lambda request: request.num_prompt_tokens)
        self.computed = of_each(lambda request: request.num_computed_tokens)
        self._longest = np.minimum(self.prompt + of_each(lambda request: request.max_tokens), longest)
        self._known = self.computed + 1  # tokens, once those have come that are on their way now
        sets = {id(stops): stops for stops in (r.sampling_params.all_stop_token_ids for r in requests)}
        self._stops = np.array(sorted(set().union(*sets.values())), dtype=np.int64)  # of any sequence
        self._alive = np.ones(len(requests), dtype=bool)
        self.rows, self.names = np.arange(len(requests)), list(self._row_of)
        # Since the objects were last up to date: steps made and steps that came back, of each row.
        self._made, self._back = np.zeros((2, len(requests)), dtype=np.int64)
        self._steps = 0
        self._tokens, self._ranks = np.empty((2, STEPS, len(requests)), dtype=np.int64)
        self._log_probs = np.empty((STEPS, len(requests)), dtype=np.float32)

    def choose(self) -> None:
        """Leave out of `rows` those that have ended, or whose last token is on its way."""
        goes_on = self._alive[self.rows] & (self.computed[self.rows] + 1 < self._longest[self.rows])
        if not goes_on.all():
            self.names = [name for name, kept in zip(self.names, goes_on.tolist(), strict=True) if kept]
            self.rows = self.rows[goes_on]

    def step(self) -> None:
        """All `rows` have one token more on its way."""
        self.computed[self.rows] += 1
        self._made[self.rows] += 1

    def take(self, names: Sequence[str], tokens: np.ndarray, log_probs: np.ndarray, ranks: np.ndarray) -> list[Any]:
        """The tokens that a step came back with (one for each of `names`). Returns the requests that end with it, up to
        date."""
        rows = np.fromiter(map(self._row_of.__getitem__, names), dtype=np.int64, count=len(names))
        step = self._steps  # what sequences that have ended write here is not read
        self._tokens[step, rows], self._log_probs[step, rows], self._ranks[step, rows] = tokens, log_probs, ranks
        self._steps += 1
        self._back[rows] += 1
        self._known[rows] += 1
        long = self._known[rows] >= self._longest[rows]
        may_end = self._alive[rows] & (long | np.isin(tokens, self._stops))
        ended = [
            row
            for row, token, certain in zip(*(x[may_end].tolist() for x in (rows, tokens, long)), strict=True)
            if certain or _ends_with(token, self._requests[row].sampling_params)
        ]
        for row in ended:
            self._write_back(row)
            self._alive[row] = False
        return [self._requests[row] for row in ended]

    @property
    def full(self) -> bool:
        return self._steps == STEPS

    def held(self, name: str) -> int:
        """How many tokens of a sequence its object does not have yet."""
        row = self._row_of.get(name)
        return 0 if row is None else int(self._back[row])

    def drop(self, name: str) -> None:
        """A sequence has ended; what is still on its way for it is nobody's."""
        row = self._row_of.get(name)
        if row is not None:
            self._alive[row] = False

    def write_back(self, hashes: bool) -> None:
        """All objects; also in the hashes of their full blocks, which only steps of vLLM's own read."""
        for row in np.flatnonzero(self._alive).tolist():
            self._write_back(row)
            if hashes:
                self._requests[row].update_block_hashes()
        self._made[:], self._back[:], self._steps = 0, 0, 0

    def _write_back(self, row: int) -> None:
        request, made, back = self._requests[row], int(self._made[row]), int(self._back[row])
        tokens = self._tokens[:back, row].tolist()
        request._output_token_ids.extend(tokens)  # as `append_output_token_ids`, but for the hashes
        request._all_token_ids.extend(tokens)
        request.held.add(self._log_probs[:back, row].copy(), self._ranks[:back, row].copy())
        request.num_computed_tokens += made
        request.num_in_flight_tokens += made - back
        request.num_output_placeholders += made - back


def _ends_with(token: int, params: Any) -> bool:
    """As vLLM's `check_stop`; `all_stop_token_ids` may have more."""
    return token == params.eos_token_id or token in (params.stop_token_ids or ())
