"""What people watch: one progress bar at a time, on stderr."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from rewards.verdict import Status, Verdict

INTERVAL = 0.2 if sys.stderr.isatty() else 10.0  # seconds between two drawings; a log file gets few
FORM = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {unit} [{elapsed}, {remaining} left{postfix}]"


class Bar:
    """How many of `total` things are done, and what was noted of the last. scaled: in thousands, millions and so on."""

    def __init__(self, title: str, total: int, things: str, done: int = 0, scaled: bool = False) -> None:
        self._bar = tqdm(
            desc=title, total=total, unit=things, initial=done, unit_scale=scaled, bar_format=FORM, mininterval=INTERVAL
        )

    def done(self, count: int = 1, note: str = "") -> None:
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)

    def close(self) -> None:
        self._bar.close()


class TrainingBar(Bar):
    """Steps, with the reward, the pass rate and the speed of generation at the last one."""

    def step(self, record: dict[str, Any]) -> None:
        form = "reward {reward:.3f}, pass rate {pass_rate:.3f}, {tokens_per_second:.0f} tokens/s"
        self.done(note="" if record.get("pass_rate") is None else form.format(**record))


class EvaluationBar(Bar):
    """Completions graded, with the running share of accepted ones."""

    def __init__(self, completions: int, title: str) -> None:
        super().__init__(title, completions, "graded")
        self._accepted = self._graded = 0

    def graded(self, verdict: Verdict) -> None:
        self._graded += verdict.status is not Status.NO_VERDICT
        self._accepted += verdict.status is Status.ACCEPTED
        self.done(note=f"pass@1 {self._accepted / self._graded:.3f}" if self._graded else "")
