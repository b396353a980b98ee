"""Estimates with their uncertainty: unbiased pass@k, bootstrap intervals, paired comparisons, and sample sizes.

Pure functions of numbers. The unit of observation is the problem, since completions of one problem are not independent;
or the cluster, where problems come in clusters of their kind. Two policies are compared on the same problems, so the
problem's difficulty cancels out of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05  # of false alarms; intervals hold 1 − LEVEL
POWER = 0.8
RESAMPLES = 2000
COMPARISON_RESAMPLES = 10_000  # a p-value near the level needs a finer grid than an interval's ends


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


def pass_values(counts: Sequence[tuple[int, int]], k: int) -> list[float | None]:
    """The unbiased pass@k of each problem, None where fewer than k completions were graded."""
    return [pass_at_k(graded, accepted, k) if graded >= k else None for accepted, graded in counts]


def wilson_interval(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927). Raises `ValueError` for n = 0."""
    if n < 1:
        raise ValueError("an interval of a proportion needs at least one observation")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # rounding must not push the ends past p


def mean_interval(values: Sequence[float], seed: int = 0, clusters: Sequence[str] | None = None) -> tuple[float, float]:
    """95 % interval of the mean of one value a problem, each in [0, 1].

    Percentile bootstrap over problems; where some share a cluster, mean ± t · s of `cluster_error`. Wilson's where all
    values are equal or there is one cluster, with as many observations as clusters: nothing else can see the
    uncertainty of a sample without variation.
    """
    data = np.asarray(values, dtype=float)
    members = _members(clusters, data.size)
    if data.size < 2 or np.all(data == data[0]) or (members is not None and len(members) == 1):
        count = data.size if members is None else len(members)
        return wilson_interval(float(data.mean()) * count if count else 0.0, count)
    if members is None:
        low, high, _ = _bootstrap_of_mean(data, RESAMPLES, seed)
        return low, high
    mean, half = float(data.mean()), _half_interval(*cluster_error(data, members))
    return max(0.0, mean - half), min(1.0, mean + half)


def _members(clusters: Sequence[str] | None, count: int) -> list[NDArray[np.intp]] | None:
    """Indices of each cluster's problems; None where every problem is a cluster of its own."""
    if clusters is None:
        return None
    _, label = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    found = [np.flatnonzero(label == k) for k in range(label.max(initial=-1) + 1)]
    return found if len(found) < count else None


def cluster_error(data: NDArray[np.float64], members: Sequence[NDArray[np.intp]]) -> tuple[float, float]:
    """Standard error of the mean of data (n,) whose clusters, not its values, are independent, and its degrees of
    freedom for Student's t.

    With w_g = n_g / n: √(Σ_g (Σ_{i in g} (x_i − x̄))² / (1 − w_g)) / n, and
    1 / (Σ_g w_g² + Σ_{g≠h} w_g² w_h² / ((1 − w_g) (1 − w_h))). This is the bias-reduced linearisation of Bell and
    McCaffrey (2002) for a mean; for clusters of one size Liang and Zeger's error with G − 1 degrees. Where a cluster
    holds most values, its residuals nearly cancel, and there is about one degree. Never below the error of independent
    values: if members of a cluster differ more than others, that is chance.
    """
    share = np.array([len(one) for one in members]) / data.size
    sums = np.array([(data[one] - data.mean()).sum() for one in members])
    error = float(np.sqrt((sums**2 / (1 - share)).sum()) / data.size)
    pair = share**2 / (1 - share)
    freedom = 1 / float((share**2).sum() + pair.sum() ** 2 - (pair**2).sum())
    return max(error, float(data.std(ddof=1)) / math.sqrt(data.size)), freedom


def _half_interval(error: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(1 - LEVEL / 2, freedom)) * error


def _bootstrap_of_mean(data: NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float, NDArray]:
    """Ends of the 95 % percentile interval of the mean, and the means of all resamples."""
    from scipy.stats import bootstrap

    result = bootstrap(
        (data,),
        np.mean,
        confidence_level=1 - LEVEL,
        method="percentile",
        n_resamples=resamples,
        batch=max(1, 400_000 // data.size),
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high), result.bootstrap_distribution


@dataclass(frozen=True)
class Comparison:
    """B against A on the same problems. `only_a` and `only_b` count problems that one of them solved more often;
    `width` is that of the interval before its ends were cut to what a difference can be."""

    difference: float
    low: float
    high: float
    p_value: float
    method: str
    problems: int
    only_a: int
    only_b: int
    width: float

    @property
    def proven(self) -> bool:
        """Whether the difference is more than chance at the 5 % level."""
        return self.p_value < LEVEL


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test (1947): problems on which the two disagree fall to either with 1/2."""
    from scipy.stats import binomtest

    discordant = only_a + only_b
    return 1.0 if discordant == 0 else float(binomtest(only_a, discordant, 0.5).pvalue)


def compare(a: Sequence[float], b: Sequence[float], seed: int = 0, clusters: Sequence[str] | None = None) -> Comparison:
    """Compare two policies by one value a problem (pass@k), in the same order of problems.

    The interval of mean(b) − mean(a) is the paired percentile bootstrap over problems. Where every value is 0 or 1 (one
    completion a problem), the p-value is McNemar's, exact; else twice the smaller share of resamples on one side of no
    difference. Where problems share clusters, interval and p-value are those of a paired t-test with the error of
    `cluster_error`; one cluster of several problems is one observation, which proves nothing. Where all differences are
    alike, the interval has room for as many others as may have been missed. Raises `ValueError` unless both have the
    same, non-zero number of problems.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"a paired comparison needs the same problems on both sides, not {len(a)} and {len(b)}")
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    differences = second - first
    only_a, only_b = int((differences < 0).sum()), int((differences > 0).sum())
    single = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    difference = float(differences.mean())
    members = _members(clusters, differences.size)
    if members is not None and len(members) == 1:
        low, high, p_value, method = -1.0, 1.0, 1.0, "one cluster, which tells nothing of others"
    elif differences.size < 2 or np.all(differences == differences[0]):
        units = differences.size if members is None else len(members)
        other = 1 - (LEVEL / 2) ** (1 / units)  # units that would differ: Clopper and Pearson's bound where none does
        low, high = difference - other * (1 + difference), difference + other * (1 - difference)  # by all they can
        p_value = min(1.0, 2 * (1 + abs(difference)) ** -units)  # at which that interval begins at 0
        method = "exact McNemar" if single else "all alike"
    elif members is not None:
        from scipy.stats import t

        error, freedom = cluster_error(differences, members)
        half = _half_interval(error, freedom)
        low, high = difference - half, difference + half
        p_value = 2 * float(t.sf(abs(difference) / error, freedom))
        method = f"paired t-test over {len(members)} clusters"
    else:
        low, high, means = _bootstrap_of_mean(differences, COMPARISON_RESAMPLES, seed)
        if single:
            p_value, method = mcnemar(only_a, only_b), "exact McNemar"
        else:
            below, above = (means <= 0).sum(), (means >= 0).sum()
            p_value = min(1.0, 2 * (min(below, above) + 1) / (means.size + 1))
            method = "paired bootstrap"
    ends = max(-1.0, low), min(1.0, high)
    return Comparison(difference, *ends, float(p_value), method, differences.size, only_a, only_b, high - low)


def _quantile(probability: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(probability))


def problems_needed(gain: float, deviation: float, *, power: float = POWER) -> int:
    """Problems with which a gain of the mean is found with the given power at the 5 % level, two-sided.

    deviation: standard deviation over problems of the paired difference. ((z_{1−α/2} + z_power) · σ / gain)², the
    normal approximation. Raises `ValueError` unless gain and deviation are positive.
    """
    if not (gain > 0 and deviation > 0):
        raise ValueError(f"a gain of {gain} with deviation {deviation} needs no sample size")
    return max(2, math.ceil(((_quantile(1 - LEVEL / 2) + _quantile(power)) * deviation / gain) ** 2))


def detectable_gain(problems: int, deviation: float, *, power: float = POWER) -> float:
    """The smallest gain that so many problems show with the given power: the inverse of `problems_needed`."""
    return (_quantile(1 - LEVEL / 2) + _quantile(power)) * deviation / math.sqrt(problems)


def within_variance(counts: Sequence[tuple[int, int]]) -> float:
    """Mean over problems of p (1 − p), from (correct, completions) of each problem: the noise of one completion.

    c (n − c) / (n (n − 1)) is unbiased for it. With one completion a problem it cannot be estimated: then every problem
    is taken to be as uncertain as the mean rate, which is the worst case. Never less than if one right and one wrong
    completion more had been drawn: where all are alike, the next need not be.
    """
    right, drawn = sum(c for c, _ in counts), sum(n for _, n in counts)
    repeated = [c * (n - c) / (n * (n - 1)) for c, n in counts if n > 1]
    rate, one = right / max(1, drawn), 1 / (drawn + 2)
    return max(float(np.mean(repeated)) if repeated else rate * (1 - rate), one * (1 - one))


def paired_deviation(within: float, samples: int) -> float:
    """Standard deviation over problems of the difference of two pass rates, `samples` completions a side and problem.

    within: as from `within_variance`. The gain itself is taken to be alike on all problems.
    """
    return math.sqrt(2 * within / samples)
