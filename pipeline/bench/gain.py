"""The measurements behind `python scripts/bench.py gain`: how much of the reward the scalars reach from the base.

Graded completions of the base give scores s = ∇_v log π and advantages A. The natural gradient d = (F + ridge)⁻¹ g,
with g = E[A s] and F = E[s sᵀ], gains most per KL (Kakade, "A Natural Policy Gradient", 2001). v is moved along it by
a few nats a completion, ½ vᵀFv, and judged on problems that it was not fitted to, for every rule that gives P. So this
measures the choice of P alone: no optimizer, no schedule, no luck of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.legacy import projection_of
from adapters.principal import principal_projections
from adapters.tinylora import TinyLoRA
from pipeline.bench.form import Row, row
from pipeline.config import ConfigError, RunConfig
from pipeline.evaluation.evaluate import Evaluation, evaluate, fitting_problems
from pipeline.policy.loading import Policy, load_policy
from pipeline.policy.models import ModelChoice
from pipeline.rollout import Sampling
from pipeline.rollout.streaming import StreamingGrader
from pipeline.tasks import task_of
from pipeline.tasks.graders import start_graders
from pipeline.tasks.problem_sets import load_problem_sets
from pipeline.training.advantages import group_advantages, reward_tensor
from pipeline.training.calibration import entry_scores
from pipeline.training.microbatch import spread_rows
from pipeline.training.sampler import PolicySampler, StepRecord
from pipeline.training.scoring import Scoring
from rewards.problem import Problem

RULES = ("normal", "principal")
RIDGE = 0.05  # of the mean of F's diagonal, where every scalar has unit variance


def natural_direction(scores: Tensor, advantages: Tensor) -> Tensor:
    """(F + ridge)⁻¹ g as long as a KL of one nat takes: scores (n, p), advantages (n,) → (p,) float64. Raises
    `ConfigError` where no completion has an advantage."""
    if not advantages.any():
        raise ConfigError(
            "the completions of every problem earned the same, so no step can be fitted to them; take a --dataset that "
            "is solved sometimes, or more --completions"
        )
    scores, advantages = scores.double(), advantages.double()
    scale = scores.square().mean(dim=0).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    scaled = scores / scale
    fisher = scaled.mT @ scaled / len(scaled)
    ridged = fisher + RIDGE * torch.eye(len(fisher), dtype=fisher.dtype, device=fisher.device)
    direction = torch.linalg.solve(ridged, scaled.mT @ advantages / len(scaled))
    return direction / scale * math.sqrt(2 / float(direction @ fisher @ direction))


def vector_scores(scores: Tensor, bank: TinyLoRA) -> Tensor:
    """∇_v log π (n, groups · u) from the scores (n, modules, r²) of single entries, with the adapter's P."""
    by_module = torch.einsum("nme,mue->nmu", scores, bank.projections.flatten(2))  # type: ignore[operator]
    summed = scores.new_zeros(len(scores), bank.config.groups, bank.config.u)
    return summed.index_add_(1, bank.group_index, by_module).flatten(1)  # type: ignore[arg-type]


def measure(choice: ModelChoice, config: RunConfig, completions: int, nats: Sequence[float], samples: int) -> list[Row]:
    """Rows for directions fitted to about `completions` completions; `samples` of each held-out problem judge them."""
    task, sets = task_of(config), load_problem_sets(config)
    with start_graders(config) as pool:
        policy = load_policy(choice, replace(config, projections="principal"))
        train, _ = fitting_problems(policy.tokenizer, sets.train, config.max_prompt_length, task)
        held_out, _ = fitting_problems(policy.tokenizer, sets.held_out, config.max_prompt_length, task)
        grader = StreamingGrader(pool, task)
        found = graded(policy, grader, train, config, completions)
        scores, group = found.scores, config.num_generations
        advantages = group_advantages(found.rewards, group, config.scale_rewards).to(scores.device)
        sampling = Sampling(config.max_completion_length, config.temperature, config.seed)

        def judged() -> Evaluation:
            policy.serve()
            return evaluate(policy.engine, policy.tokenizer, grader, held_out, samples, sampling)

        base, bank = judged(), policy.model.tinylora
        rows = [_row("the base", base, base, samples)]
        for rule in RULES:
            _give(bank, rule, scores)
            direction = natural_direction(vector_scores(scores, bank), advantages).view_as(bank.v)
            for kl in nats:
                with torch.no_grad():
                    bank.v.copy_(math.sqrt(kl) * direction)
                rows += [_row(f"{rule} P, {kl:g} nats", judged(), base, samples)]
            with torch.no_grad():
                bank.v.zero_()
        policy.close()
    return rows


class Graded(NamedTuple):
    """Completions of the base, group by group: scores (n, modules, r²) of every entry, rewards (n,), whether all tests
    passed (n,), tokens (n,)."""

    scores: Tensor
    rewards: Tensor
    passed: Tensor
    tokens: Tensor


def graded(
    policy: Policy, grader: StreamingGrader, problems: list[Problem], config: RunConfig, wanted: int
) -> Graded:
    """About `wanted` completions of the base, whose `v` is zero."""
    group = config.num_generations
    chosen = [i for i in spread_rows(len(problems), -(-wanted // group)) for _ in range(group)]
    sampling = Sampling(config.max_completion_length, config.temperature, config.seed)
    sampler = PolicySampler(policy, grader, problems, group, sampling)
    record = StepRecord()
    sampler.serve(0, record)
    drawn = sampler.draw(0, record, chosen)
    verdicts = drawn.grading.collect()
    scores = entry_scores(policy, drawn.prompts, [c.token_ids for c in drawn.completions], config)
    texts = [sampler.text(completion) for completion in drawn.completions]
    rows = [problems[i] for i in chosen]
    _, totals = Scoring(grader.task, config, ()).scores(rows, drawn.completions, texts, verdicts)
    passed = torch.tensor([float(verdict.accepted) for verdict in verdicts])
    return Graded(scores, reward_tensor(totals), passed, torch.tensor([len(c.token_ids) for c in drawn.completions]))


def _give(bank: TinyLoRA, rule: str, scores: Tensor) -> None:
    """P by `rule`; principal ones of the completions that the direction is fitted to."""
    if rule == "principal":
        bank.set_projections(principal_projections(scores, bank)[0])
        return
    config = replace(bank.config, projections=rule)
    drawn = [projection_of(config, index, name) for index, name in enumerate(bank.names)]
    bank.set_projections(torch.stack(drawn).to(bank.v.device))


def _row(what: str, found: Evaluation, base: Evaluation, samples: int) -> Row:
    """pass@1 beside the base's, with the standard error of the difference by problem."""

    def rates(evaluation: Evaluation) -> Tensor:
        return torch.tensor([accepted / max(1, graded) for accepted, graded in evaluation.counts()])

    difference = rates(found) - rates(base)
    error = float(difference.std() / math.sqrt(len(difference)))
    about = f"{what}: pass@1 of {len(difference)} problems x {samples}, {float(difference.mean()):+.3f} ± {error:.3f}"
    return row(about, float(rates(found).mean()), "pass@1", baseline=float(rates(base).mean()) or None)
