"""`--staleness 1`: every batch is drawn one step before it is trained, so that its grading has a step's time.

A step serves its `v` and draws the next step's batch; only then does it wait for the verdicts of its own, which was
drawn in the step before. Generating and training alternate as ever, in one thread, and the engine holds the `v` that is
trained, so its merged weights serve the training pass. What overlaps is grading: a step lasts about as long as the
longer of generating with training, and grading. The first two batches are both drawn by the first policy. Nothing that
was drawn is thrown away, and no batch is more than one step old.

A checkpoint keeps the `v` that drew the batch in flight. A resumed run draws that batch again by it, with the same
random numbers, so it goes on as if it had not been killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.run_folder import STATES, read_json
from pipeline.training.sampler import Drawn, PolicySampler, StepRecord
from storage.files import write_json

STATE = STATES["staleness"]


class DrawnAhead:
    """Draws batches a step ahead. order: the problems of the whole run, one for each group. groups: of a batch."""

    def __init__(self, sampler: PolicySampler, order: Sequence[int], groups: int) -> None:
        self.sampler, self.order, self.groups = sampler, order, groups
        self.next: Drawn | None = None  # the batch in flight
        self._drew: tuple[int, Tensor] | None = None  # the version that drew it, and its v

    def save(self, checkpoint: Path) -> None:
        assert self._drew is not None
        version, v = self._drew
        write_json(checkpoint / STATE, {"version": version, "v": v.tolist()})

    def load(self, checkpoint: Path) -> None:
        state = read_json(checkpoint / STATE)
        self._drew = state["version"], torch.tensor(state["v"], dtype=torch.float32)

    def draw(self, step: int, record: StepRecord) -> Drawn:
        """The batch of `step`, after that of the next one was drawn by the `v` of this one, which is then served."""
        v = self.sampler.policy.model.tinylora.v
        drawn, self.next = self.next, None
        if drawn is None and self._drew is not None:
            drawn = self._draw_again(step, record, v)
        self.sampler.serve(step, record)
        if drawn is None:
            drawn = self._draw(step, record)
        self._drew = step, v.detach().cpu().clone()
        if self._problems(step + 1):
            self.next = self._draw(step + 1, record)
        return drawn

    def _draw_again(self, step: int, record: StepRecord, v: Tensor) -> Drawn:
        """The batch that was in flight when the run ended, by the `v` that drew it; torch's random numbers stay."""
        assert self._drew is not None
        version, older = self._drew
        now, state = v.detach().clone(), torch.random.get_rng_state()
        with torch.no_grad():
            v.copy_(older)
        self.sampler.serve(version, record)
        drawn = self._draw(step, record)
        with torch.no_grad():
            v.copy_(now)
        torch.random.set_rng_state(state)
        return drawn

    def _draw(self, step: int, record: StepRecord) -> Drawn:
        rows = [problem for problem in self._problems(step) for _ in range(self.sampler.group_size)]
        return self.sampler.draw(step, record, rows)

    def _problems(self, step: int) -> Sequence[int]:
        return self.order[step * self.groups : (step + 1) * self.groups]
