"""The Fisher matrix F = E[s sᵀ] of a policy's scalars, made of scores s = ∇ log π, and what follows from it.

A change d of the scalars moves the policy by KL = ½ dᵀ F d + O(|d|³) nats a completion (Kakade, "A Natural Policy
Gradient", 2001).
"""

from __future__ import annotations

import torch
from torch import Tensor


def ridged_fisher(fisher: Tensor, count: float) -> Tensor:
    """F (p, p) of about `count` completions plus the share p / (p + count) of tr(F)/p · I.

    Nothing is taken from F for it: along the step, which was made from the same completions, F is known best.
    """
    size = len(fisher)
    ridged = fisher.clone()
    ridged.diagonal().add_(size / (size + count) * fisher.trace() / size)
    return ridged


def predicted_kl(step: Tensor, fisher: Tensor) -> float:
    """½ stepᵀ F step in nats a completion; step (p,), fisher (p, p)."""
    return float(step @ fisher @ step) / 2


def signal_share(average: Tensor, noise: float, fisher: Tensor) -> float:
    """The share of averageᵀ F⁻¹ average that is not noise, 0 to 1; average (p,), fisher (p, p).

    noise: what the average would have without any signal, E[εᵀ F⁻¹ ε].
    """
    whole = float(average @ torch.linalg.solve(fisher, average))
    return max(0.0, 1 - noise / whole) if whole > 0 else 0.0
