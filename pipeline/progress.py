"""What people watch: one progress bar at a time, on stderr."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from rewards.verdict import Status, Verdict

INTERVAL = 0.2 if sys.stderr.isatty() else 10.0  # seconds between two drawings; a log file gets few


class TrainingBar:
    """Steps done and left, with the reward, the pass rate and the speed of generation at the last step."""

    def __init__(self, steps: int, done: int) -> None:
        form = "training {percentage:3.0f}%|{bar:20}| step {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
        self._bar = tqdm(total=steps, initial=done, bar_format=form, mininterval=INTERVAL)

    def step(self, record: dict[str, Any]) -> None:
        if record.get("pass_rate") is not None:
            self._bar.set_postfix_str(
                f"reward {record['reward']:.3f}, pass rate {record['pass_rate']:.3f}, "
                f"{record['tokens_per_second']:.0f} tokens/s",
                refresh=False,
            )
        self._bar.update(1)

    def close(self) -> None:
        self._bar.close()


class EvaluationBar:
    """Completions graded, with the running share of accepted ones."""

    def __init__(self, completions: int, title: str) -> None:
        form = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} graded [{elapsed}, {remaining} left{postfix}]"
        self._bar = tqdm(total=completions, desc=title, bar_format=form, mininterval=INTERVAL)
        self._accepted = self._graded = 0

    def graded(self, verdict: Verdict) -> None:
        self._graded += verdict.status is not Status.NO_VERDICT
        self._accepted += verdict.status is Status.ACCEPTED
        if self._graded:
            self._bar.set_postfix_str(f"pass@1 {self._accepted / self._graded:.3f}", refresh=False)
        self._bar.update(1)

    def close(self) -> None:
        self._bar.close()


class ProjectionsBar:
    """Completions of the base, from which the principal projections come: first drawn, then scored."""

    def __init__(self, completions: int, doing: str) -> None:
        form = "projections {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {desc} [{elapsed}, {remaining} left]"
        self._bar = tqdm(total=completions, desc=doing, bar_format=form, mininterval=INTERVAL)

    def done(self, completions: int = 1) -> None:
        self._bar.update(completions)

    def close(self) -> None:
        self._bar.close()


class ConversionBar:
    """Bytes of a model's weights that are converted."""

    def __init__(self, size: int, title: str) -> None:
        form = "converting {desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}B [{elapsed}, {remaining} left]"
        self._bar = tqdm(total=size, desc=title, bar_format=form, unit_scale=True, mininterval=INTERVAL)

    def written(self, size: int) -> None:
        self._bar.update(size)

    def close(self) -> None:
        self._bar.close()
