"""Principal projections of a loaded policy: sampled from its base, scored by two passes, before a run begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.principal import entry_rows, principal_projections
from pipeline.config import RunConfig
from pipeline.evaluation.evaluate import prompt_ids
from pipeline.policy.loading import Policy
from pipeline.rollout import Sampling
from pipeline.tasks import Task
from pipeline.training.logprobs import completion_log_probs
from pipeline.training.microbatch import spread_rows
from pipeline.training.packing import Tokens, packed, within_budget
from rewards.problem import Problem

COMPLETIONS = 512  # at least, and four for every scalar
PER_PROMPT = 8
SEED = 3_000_003


def calibrate(policy: Policy, problems: Sequence[Problem], task: Task, config: RunConfig) -> dict[str, Any]:
    """Give the adapter of `policy`, whose v is zero, its principal projections; returns what a run notes of it.

    The completions are drawn at the temperature of training from prompts of `problems`, spread over all of them, and
    are not graded: only the policy's own variation counts.
    """
    start = time.perf_counter()
    bank = policy.model.tinylora
    wanted = max(COMPLETIONS, 4 * bank.v.numel())
    chosen = [problems[i] for i in spread_rows(len(problems), -(-wanted // PER_PROMPT))]
    repeats = -(-wanted // len(chosen))
    prompts = [ids for ids in prompt_ids(policy.tokenizer, chosen, task) for _ in range(repeats)]
    policy.serve(0)
    sampling = Sampling(config.max_completion_length, config.temperature, SEED + config.seed)
    completions = policy.engine.generate(prompts, sampling, lambda row, completion: None)
    tokens = [completion.token_ids for completion in completions]
    scores, certainty = entry_scores(policy, prompts, tokens, config), entry_certainty(policy, prompts, tokens, config)
    projections, share = principal_projections(scores, certainty, bank)
    bank.set_projections(projections)
    return {"completions": len(prompts), "variance_share": share, "seconds": round(time.perf_counter() - start, 1)}


def entry_scores(policy: Policy, prompts: Tokens, completions: Tokens, config: RunConfig) -> Tensor:
    """∇ log π of completions of the base by every entry of every R, (completions, modules, r²) float32."""
    return _entry_gradients(policy, prompts, completions, config, lambda log_probs, entropies, lengths: log_probs.sum())


def entry_certainty(policy: Policy, prompts: Tokens, completions: Tokens, config: RunConfig) -> Tensor:
    """−∇ H by every entry of every R, (modules, r²) float32: H is the mean entropy of a completion's tokens, in the
    mean over completions, and what was written before each token is held fixed."""

    def value(log_probs: Tensor, entropies: Tensor, lengths: Tensor) -> Tensor:
        return -(entropies.sum(dim=1) / lengths).sum()

    return _entry_gradients(policy, prompts, completions, config, value, of_entropy=True).mean(dim=0)


def _entry_gradients(
    policy: Policy,
    prompts: Tokens,
    completions: Tokens,
    config: RunConfig,
    value: Callable[[Tensor, Tensor, Tensor], Tensor],
    of_entropy: bool = False,
) -> Tensor:
    """What each completion of the base gives to the gradient of `value`, a sum over completions of what their
    log-probabilities (n, t), entropies (n, t) and lengths (n,) make: (completions, modules, r²) float32.

    Each completion has a prompt of its own here: what flows back through a shared one cannot be told apart.
    """
    model, bank = policy.model, policy.model.tinylora
    gradients = torch.zeros(len(prompts), len(bank.layers), bank.config.rank**2, device=bank.v.device)
    budget = policy.memory.micro_batch_tokens if policy.memory else config.micro_batch_tokens
    if policy.memory and policy.memory.gradient_checkpointing:  # as the budget of tokens supposes
        model.gradient_checkpointing_enable()
    model.train()
    for part in within_budget(prompts, completions, budget, shared=False):
        chosen = [prompts[row] for row in part], [completions[row] for row in part]
        pack = packed(*chosen, bank.v.device, shared=False)
        with entry_rows(bank, pack.owners, pack.count) as entries:
            width = int(pack.lengths.max())
            found = completion_log_probs(model, pack, width, config.temperature, entropy_gradient=of_entropy)
            value(*found, pack.lengths).backward()
        gradients[part] = entries.grad
    return gradients
