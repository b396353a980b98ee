"""Rollout engines: what samples completions from the policy, and how the policy reaches it."""

from pipeline.rollout.engine import Completion, EngineError, RefreshReport, RolloutEngine, Sampling

__all__ = ["Completion", "EngineError", "RefreshReport", "RolloutEngine", "Sampling"]
