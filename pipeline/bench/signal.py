"""The measurements behind `python scripts/bench.py signal`: how much of the gradient of pass@1 some scalars see.

For the scalars' scores s = ∇_v log π of a completion and its advantage A, g = E[A s] is the gradient of pass@1 and
F = E[s sᵀ]. The squared signal gᵀF⁻¹g is what a choice of the adapter decides: to first order the best step of δ nats
gains sqrt(2 δ gᵀF⁻¹g) (Kakade, "A Natural Policy Gradient", 2001). It is estimated without bias from products of the
gradients of different groups; its standard error is the jackknife's over groups.

The same scores tell how much of that direction is left in the gradient of one batch, by the rewards it is made with and
by how the loss weighs completions.

The entries of all R of one high rank hold those of every lower rank and of every band of singular directions. So the
completions are drawn, graded and differentiated once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from adapters.principal import leading_components
from pipeline.bench.form import Row, row
from pipeline.bench.gain import RIDGE, Graded, graded
from pipeline.config import RunConfig
from pipeline.evaluation.evaluate import fitting_problems
from pipeline.policy.loading import load_policy
from pipeline.policy.models import ModelChoice
from pipeline.rollout.streaming import StreamingGrader
from pipeline.tasks import task_of
from pipeline.tasks.graders import start_graders
from pipeline.tasks.problem_sets import load_problem_sets
from pipeline.training.advantages import group_advantages

RULES = ("normal", "principal", "principal of scores a token")
TINY = torch.finfo(torch.float64).tiny


def measure(choice: ModelChoice, config: RunConfig, completions: int) -> list[Row]:
    """Rows for `config.u` scalars in every band of the first `config.rank` singular directions, by every rule for P."""
    task, sets = task_of(config), load_problem_sets(config)
    with start_graders(config) as pool:
        policy = load_policy(choice, replace(config, projections="principal"))
        problems, _ = fitting_problems(policy.tokenizer, sets.train, config.max_prompt_length, task)
        found = graded(policy, StreamingGrader(pool, task), problems, config, completions)
        policy.close()
    about = f"{len(found.passed)} completions, pass@1 {float(found.passed.mean()):.3f}, {config.u} scalars"
    rows = [row(f"{about}; {text}", value, "squared signal") for text, value in _signals(found, config)]
    return rows + [row(f"{about}; {text}", value, "cosine") for text, value in _cosines(found, config)]


def _signals(found: Graded, config: RunConfig) -> Iterator[tuple[str, float]]:
    group, advantages = config.num_generations, _advantages(found.passed, found, config)
    for low, high in bands(config.rank):
        entries = band(found.scores, low, high).flatten(1).double()
        if entries.shape[1] < config.u:
            continue
        for rule in RULES:
            scores = entries @ _projections(rule, entries, found.tokens, config).mT
            value, error = squared_signal(scores, advantages, group)
            gain = math.sqrt(2 * max(0.0, value))
            yield f"singular directions {low} to {high - 1}, {rule}: ± {error:.2g}, {gain:.3f} at one nat", value


def _cosines(found: Graded, config: RunConfig) -> Iterator[tuple[str, float]]:
    """Of the gradient of a step's groups to that of pass@1, in principal scalars of all singular directions."""
    group, entries = config.num_generations, found.scores.flatten(1).double()
    scores = entries @ _projections("principal", entries, found.tokens, config).mT
    advantages, tokens = _advantages(found.passed, found, config), found.tokens.to(scores.device).clamp(min=1)
    for name, rewards in (("rewards of the run", found.rewards), ("1 for a pass", found.passed)):
        rewarded = _advantages(rewards, found, config)
        for weights, weighted in (("by own length (grpo)", rewarded / tokens), ("alike (dr_grpo)", rewarded)):
            value, error = batch_cosine(scores, advantages, weighted, group, config.prompts_per_step)
            yield f"{config.prompts_per_step} groups, {name}, completions {weights}: ± {error:.2g}", value


def _advantages(rewards: Tensor, found: Graded, config: RunConfig) -> Tensor:
    """Of rewards (n,), float64; a completion is left out of the mean that it is compared with, which makes the gradient
    unbiased."""
    group = config.num_generations
    advantages = group_advantages(rewards, group, "none").to(found.scores.device).double()
    return advantages * group / (group - 1)


def _projections(rule: str, entries: Tensor, tokens: Tensor, config: RunConfig) -> Tensor:
    """The scalars' directions (u, entries) among the entries of scores (n, entries)."""
    if rule == "normal":
        generator = torch.Generator().manual_seed(config.seed)
        return torch.randn(config.u, entries.shape[1], generator=generator, dtype=torch.float64).to(entries.device)
    if rule == "principal":
        return leading_components(entries, config.u)[0]
    return leading_components(entries / tokens.to(entries.device).clamp(min=1).unsqueeze(1), config.u)[0]


def bands(rank: int) -> list[tuple[int, int]]:
    """First and last of the singular directions that are looked at alone: the top 2, 4, 8, ..., then fours below."""
    tops = [(0, 2**power) for power in range(1, rank.bit_length()) if 2**power <= rank]
    return tops + [(low, low + 4) for low in range(4, rank - 3, 4)]


def band(scores: Tensor, low: int, high: int) -> Tensor:
    """Of scores (n, modules, r²) those of the entries R[low:high, low:high]."""
    rank = math.isqrt(scores.shape[2])
    return scores.unflatten(2, (rank, rank))[:, :, low:high, low:high].flatten(2)


def squared_signal(scores: Tensor, advantages: Tensor, group: int) -> tuple[float, float]:
    """gᵀ(F + ridge)⁻¹g with its standard error, from scores (n, p) and advantages (n,) of groups of `group` rows."""
    whitened = _whitened(scores, advantages, group)
    value, without = _products(whitened, whitened)
    return float(value), _jackknife(without)


def batch_cosine(
    scores: Tensor, advantages: Tensor, weighted: Tensor, group: int, prompts: int
) -> tuple[float, float]:
    """The cosine in F⁻¹ between the mean of `weighted` advantages (n,) times scores (n, p) over a batch of `prompts`
    groups and g = E[A s] of `advantages` (n,), with its standard error: what noise and weights leave of the direction.

    The batch's mean square is the squared mean, which takes products of different groups, plus the groups' variance.
    """
    plain, loss = _whitened(scores, advantages, group), _whitened(scores, weighted, group)
    count, total, own = loss.shape[1], loss.sum(dim=1), loss.square().sum(dim=0)
    variance = (own.sum() - total @ total / count) / (count - 1)
    rest = (total.unsqueeze(1) - loss).square().sum(dim=0) / (count - 1)
    variance_without = (own.sum() - own - rest) / (count - 2)
    (across, across_without), (mean, mean_without) = _products(plain, loss), _products(loss, loss)
    signal, signal_without = _products(plain, plain)
    value = across / ((mean + variance / prompts) * signal).clamp(min=TINY).sqrt()
    without = across_without / ((mean_without + variance_without / prompts) * signal_without).clamp(min=TINY).sqrt()
    return float(value), _jackknife(without)


def _whitened(scores: Tensor, advantages: Tensor, group: int) -> Tensor:
    """Each group's mean of advantages (n,) times scores (n, p), (p, groups), where F of the scores is the identity."""
    scale = scores.square().mean(dim=0).sqrt().clamp(min=TINY)
    scaled = scores / scale
    fisher = scaled.mT @ scaled / len(scaled)
    fisher.diagonal().add_(RIDGE)
    means = (scaled * advantages.unsqueeze(1)).unflatten(0, (-1, group)).mean(dim=1)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(fisher), means.mT, upper=False)


def _products(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """E[left] · E[right] of columns (p, groups), by products of different groups, and without each group (groups,)."""
    count, own = left.shape[1], (left * right).sum(dim=0)
    sums = left.sum(dim=1, keepdim=True), right.sum(dim=1, keepdim=True)
    value = ((sums[0] * sums[1]).sum() - own.sum()) / (count * (count - 1))
    rest = ((sums[0] - left) * (sums[1] - right)).sum(dim=0) - (own.sum() - own)
    return value, rest / ((count - 1) * (count - 2))


def _jackknife(without: Tensor) -> float:
    """The standard error, from the estimates without each group (groups,)."""
    count = len(without)
    return float(((count - 1) / count * (without - without.mean()).square().sum()).sqrt())
