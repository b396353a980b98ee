"""Rollout engines: what samples completions from the policy, and how the policy reaches it."""

from pipeline.rollout.engine import (
    Completion,
    EngineError,
    More,
    OnFinished,
    RefreshReport,
    RolloutEngine,
    Sampling,
    no_more,
    sampled_entropy,
)

__all__ = [
    "Completion",
    "EngineError",
    "More",
    "OnFinished",
    "RefreshReport",
    "RolloutEngine",
    "Sampling",
    "no_more",
    "sampled_entropy",
]
