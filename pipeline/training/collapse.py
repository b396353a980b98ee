"""When to stop a run early, or to warn: the policy has collapsed, or nothing is left to learn from. Never judged by the
training reward, which a collapse can raise.

A collapse shows as numbers that are no numbers, as a policy far from its base (KL), or as one that says the same
whatever it is asked (entropy). One bad step is noise; `PATIENCE` in a row are not. A run is idle when for many steps
all completions of every group earned the same: no row has an advantage, so nothing is trained. Engine and trainer that
are two policies from the start are no collapse but a fault, and end a run before it has trained anything.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from pipeline.rollout.engine import BEYOND, EngineError

MISMATCH_LIMIT = 1e-2  # nats per token; bf16 arithmetic alone was seen to make up to 2e-3
PATIENCE = 3
VITAL = ("loss", "grad_norm", "v_norm")


def check_mismatch(mismatch: float, model: str) -> None:
    """Raise `EngineError` where the mismatch between engine and trainer, k3 in nats per token on the first rows that a
    process trains, is more than arithmetic explains. To be called before the optimizer steps."""
    if not mismatch <= MISMATCH_LIMIT:
        raise EngineError(
            f"the completions of the first step are {mismatch:.3g} nats a token (k3) from the trained model, above "
            f"{MISMATCH_LIMIT:g}: engine and trainer are two policies, so training was ended before it changed v; run "
            f"`python scripts/doctor.py --vllm` and `python scripts/bench.py mismatch --model {model}`, try "
            f"--refresh lowrank, and report what they print, with its versions"
        )


def check_range(gradient: Tensor, what: str) -> None:
    """Raise `EngineError` where a gradient is not finite; `what` it is of. To be called before it is used."""
    if not bool(gradient.isfinite().all()):
        raise EngineError(f"the gradient of {what} is not finite: {BEYOND}")


class CollapseWatch:
    """Reads one record of metrics a step. kl_limit and entropy_floor in nats per token, idle_limit in steps; 0 switches
    each off. `stopped` is why the run should stop after the last record, `collapsed` whether the policy itself is why.

    `earlier` are the records of a resumed run, so that a pause does not reset the patience.
    """

    def __init__(
        self,
        kl_limit: float,
        entropy_floor: float,
        earlier: Iterable[Mapping[str, Any]] = (),
        *,
        idle_limit: int = 0,
    ) -> None:
        self.kl_limit = kl_limit
        self.entropy_floor = entropy_floor
        self.idle_limit = idle_limit
        self.far = self.stale = self.idle = 0
        self.alike = 1.0  # share of groups whose rewards were all equal, in the last step that drew any
        self.collapsed = False
        self.stopped: str | None = None
        for record in earlier:
            self.check(record)

    def check(self, record: Mapping[str, Any]) -> str | None:
        """Why the run should stop after this step, or None."""
        reason = self._collapse(record)
        self.collapsed = reason is not None
        idle = self._idle(record)
        self.stopped = reason or idle
        return self.stopped

    def _idle(self, record: Mapping[str, Any]) -> str | None:
        self.alike = record.get("zero_variance_groups", self.alike)
        if record.get("rows_trained") is not None:
            self.idle = 0 if record["rows_trained"] else self.idle + 1
        if self.idle_limit and self.idle >= self.idle_limit:
            why = (
                "all completions of every group earned the same reward; use problems that are solved sometimes, or a "
                "larger --num-generations"
                if self.alike > 1 - 1e-6
                else "those that differed in their reward were cut and masked, or have an --advantage-scale of 0; use "
                "a larger --max-completion-length, or another scale"
            )
            return f"no row had an advantage for {self.idle} steps: {why}"
        return None

    def _collapse(self, record: Mapping[str, Any]) -> str | None:
        for name in VITAL:
            value = record.get(name)
            if value is not None and not math.isfinite(value):
                return f"{name} is {value} at step {record['step']}"
        kl, entropy = record.get("kl_base"), record.get("entropy")
        if kl is not None:
            self.far = self.far + 1 if self.kl_limit and not kl <= self.kl_limit else 0
        if entropy is not None:
            self.stale = self.stale + 1 if entropy < self.entropy_floor else 0
        if self.far >= PATIENCE:
            return f"the KL to the base was above {self.kl_limit:g} for {PATIENCE} steps (now {kl:.3g})"
        if self.stale >= PATIENCE:
            return f"the entropy was below {self.entropy_floor:g} for {PATIENCE} steps (now {entropy:.3g})"
        return None


class JudgeWatch:
    """Warns once when most programs did not compile at first and ever more do: a policy that learns to avoid a fault
    of the judge looks like this, and so does one that learns to write programs at all.

    `earlier` are the records of a resumed run.
    """

    LOW, RISE, STEPS = 0.2, 0.15, 3  # of the compile rate, in means over so many steps

    def __init__(self, earlier: Iterable[Mapping[str, Any]] = ()) -> None:
        self.warnings: list[str] = []
        self._rates: list[float] = []
        for record in earlier:
            self.check(record)

    def check(self, record: Mapping[str, Any]) -> None:
        """Look at one step's `compile_rate`."""
        rate = record.get("compile_rate")
        if rate is None:
            return
        self._rates.append(rate)
        first, last = self._rates[: self.STEPS], self._rates[-self.STEPS :]
        before, now = sum(first) / len(first), sum(last) / len(last)
        if not self.warnings and len(self._rates) > self.STEPS and before < self.LOW and now > before + self.RISE:
            self.warnings.append(
                f"the compile rate rose from {before:.2f} to {now:.2f} by step {record['step']}: the policy may be "
                f"learning the judge; read the compiler's messages in the report"
            )
            print(f"\nwarning: {self.warnings[0]}", file=sys.stderr, flush=True)
