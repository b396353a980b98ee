"""The measurements behind `python scripts/bench.py causes`: which rounding makes how much of the mismatch.

Completions are sampled at v = 0, where trainer and engine hold the same weights. Their exact log-probabilities are a
plain transformers model's in float32. Against these: the engine and the trainer as they run, and a forward pass whose
roundings to bf16 are switched one by one (`rounding.py`). Rounding errors of different places are independent, so what
single places make adds up to the whole, and the mismatch of two sides is near the sum of their distances.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.bench.exact import ExactPolicy
from pipeline.bench.form import Row, row
from pipeline.bench.rounding import KEPT, SITES, RoundedForward
from pipeline.config import RunConfig
from pipeline.evaluation.evaluate import fitting_problems, prompt_ids
from pipeline.policy.loading import load_policy
from pipeline.policy.models import ModelChoice
from pipeline.rollout import Sampling
from pipeline.tasks import task_of
from pipeline.tasks.problem_sets import load_problem_sets
from pipeline.training.logprobs import log_probs_without_gradient

UNIT = "k3 per token"
TOGETHER = 4  # so many of the worst places are made exact one after another


def measure(choice: ModelChoice, config: RunConfig) -> list[Row]:
    """Rows for one completion of each of `config.prompts_per_step` problems."""
    task, sets = task_of(config), load_problem_sets(config)
    policy = load_policy(choice, config)
    problems, _ = fitting_problems(policy.tokenizer, sets.train, config.max_prompt_length, task)
    prompts = prompt_ids(policy.tokenizer, problems[: config.prompts_per_step], task)
    v = policy.model.tinylora.v
    policy.engine.refresh(v)
    sampled = policy.engine.generate(prompts, Sampling(config.max_completion_length), lambda *_: None)
    completions = [completion.token_ids for completion in sampled]
    engine = torch.tensor([value for completion in sampled for value in completion.log_probs], device=v.device)
    width, budget = max(map(len, completions)), config.micro_batch_tokens
    trainer, _ = log_probs_without_gradient(policy.model, prompts, completions, width, 1.0, budget)
    trainer = torch.cat([row[: len(tokens)] for row, tokens in zip(trainer, completions, strict=True)])
    exact = ExactPolicy(choice.location, policy.model)
    policy.close()
    return _rows(exact, engine, trainer, prompts, completions)


def _rows(
    exact: ExactPolicy, engine: Tensor, trainer: Tensor, prompts: list[list[int]], completions: list[list[int]]
) -> list[Row]:
    reference = exact.log_probs(prompts, completions)

    def rounded(sites: set[str], dtype: torch.dtype = torch.bfloat16) -> float:
        forward = RoundedForward(exact.model, sites, dtype)
        with torch.no_grad():
            parts = [forward.log_probs(*pair) for pair in zip(prompts, completions, strict=True)]
        return distance(torch.cat(parts), reference)

    everywhere = set(SITES)
    whole = rounded(everywhere)
    alone = {site: rounded({site}) for site in SITES}
    worst = sorted(SITES, key=lambda site: -alone[site])
    rows = [
        row(f"engine as it runs, {len(reference)} tokens", distance(engine, reference), UNIT),
        row("trainer as it runs", distance(trainer, reference), UNIT),
        row("engine and trainer, one from the other", distance(trainer, engine), UNIT),
        row("nothing rounded", rounded(set()), UNIT),
        row("all rounded to bf16", whole, UNIT),
        row(f"{', '.join(KEPT)} kept, the rest in bf16", rounded(everywhere - set(KEPT)), UNIT, baseline=whole),
        row("all rounded to float16", rounded(everywhere, torch.float16), UNIT, baseline=whole),
        row("those kept, the rest in float16", rounded(everywhere - set(KEPT), torch.float16), UNIT, baseline=whole),
    ]
    rows += [row(f"only {site}", alone[site], UNIT, baseline=whole) for site in worst]
    for count in range(1, TOGETHER + 1):
        left = rounded(everywhere - set(worst[:count]))
        rows.append(row(f"all but {', '.join(worst[:count])}", left, UNIT, baseline=whole))
    return rows


def distance(one: Tensor, other: Tensor) -> float:
    """k3 per token of two policies' log-probabilities (tokens,); no number where one of them has none."""
    ratio = (one - other).double()
    return float((torch.expm1(ratio) - ratio).mean())
