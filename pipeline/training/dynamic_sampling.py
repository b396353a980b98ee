"""Dynamic sampling: groups without a signal are replaced by new prompts (DAPO, arXiv 2503.14476), in one generation.

The batch of a step are the first groups with a signal in the order in which prompts were drawn, not those that were
done first, which would prefer short completions. Further groups join while earlier ones are still being generated and
graded; how many is expected from the share of groups with a signal so far. What a decision rests on is fixed by the
order in which groups were generated, never by how fast they were graded, so a run can be repeated and resumed. Prompts
drawn beyond the batch are drawn again in the next step, from the new policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """What a step drew. groups: those that make the batch, numbered as they were drawn. judged: groups up to the last
    of them, of which `silent` have no signal. drawn: groups generated in all."""

    groups: list[int]
    judged: int
    drawn: int
    silent: int

    @property
    def metrics(self) -> dict[str, float]:
        """What it cost and gave: groups generated, the share of judged ones that had no signal, and the share of
        generated ones that were not needed."""
        return {
            "groups_drawn": self.drawn,
            "silent_share": self.silent / self.judged,
            "surplus_share": 1 - self.judged / self.drawn,
        }


class DynamicSampling:
    """Decides how many groups are drawn. Lasting from step to step are `position`, of the next prompt in the order of
    training, and `share`, the expected share of groups with a signal.

    wanted: groups of a batch. limit: groups drawn in a step at most; if these have too few with a signal, others fill
    the batch. A decision knows all groups generated but the last `wanted // 2`, which may still be graded meanwhile.
    """

    def __init__(self, wanted: int, limit: int) -> None:
        self.wanted, self.limit = wanted, limit
        self.position, self.share = 0, 1.0

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"position": self.position, "share": self.share}

    def restore(self, state: dict[str, float]) -> None:
        self.position, self.share = int(state["position"]), state["share"]

    def start(self, has_signal: Callable[[int], bool]) -> int:
        """Begin a step; returns how many groups to draw first. `has_signal(group)` waits for the group's verdicts."""
        self._has_signal = has_signal
        self._signals: dict[int, bool] = {}
        self._generated: list[int] = []
        self._drawn = 0
        return self._draw()

    def generated(self, group: int) -> None:
        """Take that all completions of a group are there; groups are numbered as they were drawn."""
        self._generated.append(group)

    def more(self, idle: bool) -> int:
        """How many groups to draw now. idle: nothing is left to generate, so every verdict is waited for if needed."""
        self._judge(self._generated[: max(0, len(self._generated) - self.wanted // 2)])
        count = self._draw()
        if idle and not count:
            self._judge(self._generated)
            count = self._draw()
        return count

    def finish(self) -> Batch:
        """The batch of a step whose groups are all generated; moves `position` behind it."""
        chosen: list[int] = []
        silent: list[int] = []
        for group in range(self._drawn):
            if len(chosen) == self.wanted:
                break
            self._judge([group])
            (chosen if self._signals[group] else silent).append(group)
        judged = len(chosen) + len(silent)
        self.share = self._expected(len(chosen), judged)
        self.position += judged
        return Batch(sorted(chosen + silent[: self.wanted - len(chosen)]), judged, self._drawn, len(silent))

    def _judge(self, groups: list[int]) -> None:
        for group in groups:
            if group not in self._signals:
                self._signals[group] = self._has_signal(group)

    def _expected(self, found: int, judged: int) -> float:
        """The share of groups with a signal: what was expected counts as much as a batch that was seen."""
        return (self.wanted * self.share + found) / (self.wanted + judged)

    def _draw(self) -> int:
        judged, found = len(self._signals), sum(self._signals.values())
        missing = max(0, self.wanted - found)
        enough = judged + math.ceil(missing / self._expected(found, judged))
        count = max(0, min(enough, self.limit) - self._drawn) if missing else 0
        self._drawn += count
        return count
