"""Estimates with their uncertainty: unbiased pass@k and bootstrap intervals. The unit of resampling is the problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that one of k completions drawn without replacement from n, of which `correct` are right, is right.

    1 − C(n − c, k) / C(n, k), the unbiased estimator of Chen et al., "Evaluating Large Language Models Trained on Code"
    (2021), as a product that does not overflow. Raises `ValueError` unless 0 ≤ correct ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {correct} right among {n} completions is undefined")
    if n - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - correct + 1, n + 1)))


def wilson_interval(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of one value a problem; Wilson's where all values are equal."""
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=float)
    if data.size < 2 or np.all(data == data[0]):
        return wilson_interval(float(data.sum()), data.size)
    result = bootstrap(
        (data,),
        np.mean,
        method="percentile",
        n_resamples=2000,
        batch=200,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
