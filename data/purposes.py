"""What held-out problems are for. A set that served one purpose says too much good about a policy if it serves another.

- tuning: settings are chosen on it, run after run.
- validation: within a run it decides when to stop and which checkpoint is the best.
- test: the figure that is reported, and nothing is chosen by it.
"""

from __future__ import annotations

PURPOSES = ("tuning", "validation", "test")


def purpose_of(digest: int) -> str:
    """The purpose of a generated problem, by a hash of what it asks: it depends on nothing else, such as how many
    problems are made."""
    return PURPOSES[digest % len(PURPOSES)]
