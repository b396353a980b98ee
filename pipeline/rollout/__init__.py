"""Rollout engines: what samples completions from the policy, and how the policy reaches it."""

from pipeline.rollout.engine import (
    Completion,
    EngineError,
    RefreshReport,
    RolloutEngine,
    Sampling,
    sampled_entropy,
)

__all__ = ["Completion", "EngineError", "RefreshReport", "RolloutEngine", "Sampling", "sampled_entropy"]
