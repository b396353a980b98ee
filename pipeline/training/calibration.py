"""Principal projections of a loaded policy: sampled from its base, scored by one backward pass, before a run begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from adapters.principal import entry_rows, principal_projections
from pipeline.config import RunConfig
from pipeline.evaluation.evaluate import prompt_ids
from pipeline.policy.loading import Policy
from pipeline.progress import Bar
from pipeline.rollout import Sampling
from pipeline.tasks import Task
from pipeline.training.collapse import check_range
from pipeline.training.logprobs import completion_log_probs
from pipeline.training.microbatch import spread_rows
from pipeline.training.packing import packed, within_budget
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
    bar = Bar("projections", len(prompts), "drawn")
    completions = policy.engine.generate(prompts, sampling, lambda row, completion: bar.done())
    bar.close()
    scores = entry_scores(policy, prompts, [c.token_ids for c in completions], config)
    projections, share = principal_projections(scores, bank)
    bank.set_projections(projections)
    return {"completions": len(prompts), "variance_share": share, "seconds": round(time.perf_counter() - start, 1)}


def entry_scores(
    policy: Policy, prompts: list[list[int]], completions: list[list[int]], config: RunConfig
) -> torch.Tensor:
    """∇ log π of completions of the base by every entry of every R, (completions, modules, r²) float32.

    Each completion has a prompt of its own here: what flows back through a shared one cannot be told apart.
    """
    model, bank = policy.model, policy.model.tinylora
    scores = torch.zeros(len(prompts), len(bank.layers), bank.config.rank**2, device=bank.v.device)
    budget = policy.tokens_of_a_pass(config)
    if policy.memory and policy.memory.gradient_checkpointing:  # as the budget of tokens supposes
        model.gradient_checkpointing_enable()
    model.train()
    bar = Bar("projections", len(prompts), "scored")
    for part in within_budget(prompts, completions, budget, sharing=range(len(prompts))):
        chosen = [prompts[row] for row in part], [completions[row] for row in part]
        pack = packed(*chosen, bank.v.device, sharing=part)
        with entry_rows(bank, pack.owners, pack.count) as entries:
            log_probs, _ = completion_log_probs(model, pack, int(pack.lengths.max()), config.temperature)
            log_probs.sum().backward()
        scores[part] = entries.grad
        bar.done(len(part))
    bar.close()
    check_range(scores, "the base's own completions")
    return scores
