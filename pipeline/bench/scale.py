"""The measurements behind `python scripts/bench.py scale`: whole steps of one, two, four replicas.

Twice: with a batch that grows with the replicas, and with the same batch shared out. Programs, right and wrong ones,
are graded in the place of completions, and ends are drawn, as for `train-step`; so a model of random weights will do.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from pipeline.bench.form import Row, row
from pipeline.bench.programs import Programs
from pipeline.bench.train_step import MEAN_LENGTH, ProgramGrader, problems_of_length, timed_steps
from pipeline.config import RunConfig
from pipeline.policy.loading import Policy, load_policy
from pipeline.policy.models import ModelChoice
from pipeline.rollout import Completion, EngineError
from pipeline.scale.engine import FleetEngine, grade_where_drawn
from pipeline.scale.fleet import Fleet
from pipeline.scale.member import Handle, Launcher
from pipeline.scale.replica import seats_of
from pipeline.scale.start import launching, sharing_of
from pipeline.tasks.graders import start_graders
from pipeline.training.replica import TrainingReplica
from rewards.problem import Problem

WEAK_BARS, STRONG_BARS = {2: 1.9, 4: 3.7}, {4: 3.0}  # times one replica
SYNC_SECONDS, SYNC_SHARE = 0.010, 0.01
MOST_PROBLEMS = 512
PHASES = ("generate", "grade_wait", "train", "refresh")  # of the driver's step
OWN_PHASES = ("generate", "train")  # of each replica
SYNCHRONISATION = {
    "shares": "before it, batch out: until every replica has its share",
    "gather": "of it, from the slowest share's end to the sum of all gradients",
    "serve": "of it, v out, merged, its hash back",
}


class BenchReplica(TrainingReplica):
    """A replica that ends completions and grades programs as `train-step` does."""

    def load(self, config: RunConfig, sharing: int, lent: list[Any] | None = None) -> dict[str, Any]:
        about = super().load(config, sharing, lent)
        end_by_chance(self.policy)
        self.programs = Programs(MOST_PROBLEMS)
        return about

    def text(self, row: int, completion: Completion, problem: Problem) -> str:
        return f"```cpp\n{self.programs.of(row, problem)}```"


class FewerReplicas:
    """A launcher of which only so many replicas are used."""

    def __init__(self, launcher: Launcher, count: int) -> None:
        self.launcher, self.count, self.sharing = launcher, count, launcher.sharing

    def start(self, number: int) -> Handle:
        return self.launcher.start(number)

    def wanted(self) -> int:
        return self.count

    def lenders(self, config: RunConfig) -> Sequence[tuple[str, Handle]]:
        return self.launcher.lenders(config)

    def close(self) -> None: ...


def end_by_chance(policy: Policy) -> None:
    """Make so many tokens end a completion that about every `MEAN_LENGTH`-th does."""
    vocabulary = policy.model.config.vocab_size
    policy.engine._eos_token_ids = list(range(100, 100 + max(1, vocabulary // MEAN_LENGTH)))  # type: ignore[attr-defined]


def measure(choice: ModelChoice, config: RunConfig, counts: Sequence[int], steps: int, gpu: bool) -> list[Row]:
    """Rows for each of `counts` replicas, of which the first is 1. config: of one replica's batch, for which all of
    them are set up, so that they plan their memory alike."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    with launching(config, BenchReplica) as launcher, start_graders(config, sharing_of(launcher)) as pool:
        policy = load_policy(choice, config)
        end_by_chance(policy)
        local = policy.engine
        for count in counts:
            sizes = sorted({config.prompts_per_step, config.prompts_per_step * count})
            with ExitStack() as stack:
                if count > 1 and launcher is not None:
                    fleet = stack.enter_context(Fleet(FewerReplicas(launcher, count), config))
                    policy.engine = FleetEngine(policy, fleet, seats_of(policy, config))
                for prompts in sizes:
                    found[count, prompts] = _steps(policy, replace(config, prompts_per_step=prompts), pool, steps)
            policy.engine = local
        policy.close()
    return _rows(found, config, gpu)


def _rows(found: dict[tuple[int, int], dict[str, float]], config: RunConfig, gpu: bool) -> list[Row]:
    one, size = found[1, config.prompts_per_step], config.prompts_per_step
    rows = []
    for (count, prompts), step in found.items():
        what = f"{count} replicas, {prompts} × {config.num_generations} completions: "
        rows.append(row(what + "a step", step["wall"], "s"))
        rows += [row(f"{what}of it {phase}", step[phase], "s") for phase in PHASES]
        if count == 1:
            continue
        if "sync" not in step:
            raise EngineError(f"{count} replicas: in no measured step was there more than one; see above who was lost")
        grown = prompts > size
        bars = (WEAK_BARS if grown else STRONG_BARS) if gpu else {}
        rows += [
            row(what + "completions a second", prompts / step["wall"], "groups/s", baseline=size / one["wall"],
                at_least=bars.get(count)),
            *(row(what + SYNCHRONISATION[phase], step[phase], "s") for phase in SYNCHRONISATION),
            row(what + "synchronisation: gradient out, v back, merged", step["sync"], "s",
                at_most=SYNC_SECONDS if gpu else None),
            row(what + "synchronisation in the step", step["sync"] / step["wall"], "share",
                at_most=SYNC_SHARE if gpu else None),
            *(row(f"{what}{phase} of the slowest of the other replicas", step[f"others {phase}"], "s",
                  baseline=step[f"own {phase}"]) for phase in OWN_PHASES),
            row(what + "tokens of the replica with most, beside the mean", step["most"], "times"),
        ]  # fmt: skip
    return rows


def _steps(policy: Policy, config: RunConfig, pool: Any, steps: int) -> dict[str, float]:
    problems = problems_of_length(policy.tokenizer, 2 * config.prompts_per_step, config.max_prompt_length * 3 // 4)
    grader = ProgramGrader(pool, problems)
    grade_where_drawn(policy, grader)
    records, walls = timed_steps(policy, grader, problems, config, steps)
    measured = records[1:]  # the first step compiles
    found = {phase: statistics.median(record["seconds"][phase] for record in measured) for phase in PHASES}
    shared = [phases for record in measured if (phases := shared_phases(record))]  # not where the others were lost
    found |= {name: statistics.median(phases[name] for phases in shared) for name in (shared[0] if shared else {})}
    return found | {
        "wall": statistics.median(walls),
        "most": statistics.mean(most_tokens(record) for record in measured),
    }


def shared_phases(record: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step that several replicas share: `sync`, from the end of the slowest share to the new policy in
    every engine, without the step of the optimizer, its parts, the batch on its way out, and phases of the driver
    beside those of the slowest of the others; nothing for one replica."""
    own, *others = [lane["seconds"] for lane in record.get("replicas", [])] or [{}]
    if not others:
        return {}

    def slowest(phase: str) -> float:
        return max(seconds.get(phase, 0.0) for seconds in others)

    gather, serve = own["gather"], record["seconds"]["refresh"]
    found = {"sync": gather + serve, "gather": gather, "serve": serve, "shares": slowest("share")}
    for phase in OWN_PHASES:
        found |= {f"own {phase}": own[phase], f"others {phase}": slowest(phase)}
    return found


def most_tokens(record: dict[str, Any]) -> float:
    """Tokens of the replica that drew most, over the mean."""
    tokens = [lane["tokens"] for lane in record.get("replicas", [])] or [1]
    return max(tokens) * len(tokens) / sum(tokens)
