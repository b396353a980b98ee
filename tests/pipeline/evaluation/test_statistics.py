"""pass@k, its intervals, paired comparisons and sample sizes, against enumeration and simulation."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.statistics import (
    cluster_error,
    compare,
    detectable_gain,
    mcnemar,
    mean_interval,
    paired_deviation,
    pass_at_k,
    problems_needed,
    wilson_interval,
    within_variance,
)


@given(st.data())
def test_pass_at_k_equals_the_enumeration_of_all_draws(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9))
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    outcomes = [True] * correct + [False] * (n - correct)
    draws = [any(draw) for draw in combinations(outcomes, k)]
    assert pass_at_k(n, correct, k) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize("n, correct, k", [(5, 2, 6), (5, 6, 1), (5, 2, 0), (5, -1, 1)])
def test_pass_at_k_refuses_what_is_undefined(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="undefined"):
        pass_at_k(n, correct, k)


@pytest.mark.parametrize(
    "trials, low, high", [(150, 0.89, 0.99), pytest.param(1000, 0.93, 0.97, marks=pytest.mark.integration)]
)
def test_intervals_cover_the_mean_in_95_of_100_samples(trials: int, low: float, high: float) -> None:
    """Evaluations of 100 problems of very different difficulty, 4 completions each."""
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(trials):
        rates = random.beta(0.6, 0.9, size=100)  # mean 0.4
        ends = mean_interval((random.binomial(4, rates) / 4).tolist(), seed=trial)
        covered += ends[0] <= 0.4 <= ends[1]
    assert low <= covered / trials <= high


def test_constant_data_has_a_wilson_interval() -> None:
    assert mean_interval([0.0] * 50) == wilson_interval(0, 50)
    low, high = mean_interval([1.0] * 50)
    assert 0.9 < low < high == pytest.approx(1.0)
    assert wilson_interval(3, 165) == pytest.approx((0.0062, 0.0521), abs=5e-4)
    for n in range(1, 40):
        assert wilson_interval(0, n)[0] == 0 and wilson_interval(n, n)[1] == 1
    with pytest.raises(ValueError):
        wilson_interval(0, 0)


@given(st.integers(0, 25), st.integers(0, 25))
def test_mcnemar_equals_the_binomial_sum(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    terms = [comb(n, i) / 2**n for i in range(n + 1)]
    assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, sum(t for t in terms if t <= terms[only_a] * (1 + 1e-9))))


def clustered(random: np.random.Generator, groups: int, size: int, policies: int) -> np.ndarray:
    """(policies, groups × size) zeros and ones. The policies solve a cluster's problems at rates of its own, around 0.5
    on average."""
    rates = random.beta(2, 2, size=(policies, groups))
    return random.binomial(1, np.repeat(rates, size, axis=1)).astype(float)


def test_intervals_cover_the_mean_also_where_problems_come_in_clusters() -> None:
    """16 families of 64 problems, as the starter's. Without clusters the interval is a fraction as wide."""
    random = np.random.default_rng(0)
    names = [f"family {i // 64}" for i in range(1024)]
    covered = blind = 0
    for _ in range(400):
        (values,) = clustered(random, 16, 64, 1)
        low, high = mean_interval(values.tolist(), clusters=names)
        covered += low <= 0.5 <= high
        half = 1.96 * values.std() / 32
        blind += abs(values.mean() - 0.5) <= half
    assert 0.92 <= covered / 400 <= 0.98 and blind / 400 < 0.6


def test_equal_policies_are_rarely_told_apart_where_problems_come_in_clusters() -> None:
    """A policy that is better in some families and worse in others is no better; McNemar's test finds it so."""
    random = np.random.default_rng(1)
    names = [f"family {i // 64}" for i in range(1024)]
    alarms = blind = 0
    for _ in range(400):
        a, b = clustered(random, 16, 64, 2)
        result = compare(a.tolist(), b.tolist(), clusters=names)
        alarms += result.proven
        blind += mcnemar(result.only_a, result.only_b) < 0.05
        assert result.method == "paired t-test over 16 clusters" and result.low <= result.difference <= result.high
        assert result.proven != (result.low <= 0 <= result.high)
    assert alarms / 400 <= 0.08 and blind / 400 > 0.3


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=30))
def test_the_error_of_clusters_of_one_is_that_of_the_mean(values: list[float]) -> None:
    data = np.array(values)
    expected = data.std(ddof=1) / len(data) ** 0.5
    error, freedom = cluster_error(data, [np.array([i]) for i in range(len(data))])
    assert error == pytest.approx(expected, abs=1e-12) and freedom == pytest.approx(len(data) - 1)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 99))
def test_the_error_of_clusters_is_that_of_bell_and_mccaffrey(sizes: list[int], seed: int) -> None:
    """By the matrices: residuals e = (I − H) x with H = 1 1ᵀ / n; of each cluster A_g = (I − H_gg)^(-1/2); the error is
    √(Σ (1ᵀ A_g e_g)²) / n, with (Σ λ)² / Σ λ² degrees of freedom, λ the eigenvalues of pᵀp, p_g = (I − H)_g A_g 1."""
    n, random = sum(sizes), np.random.default_rng(seed)
    ends = np.cumsum(sizes)
    members = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    data = np.repeat(random.normal(size=len(sizes)), sizes) * 3 + random.normal(size=n)
    keep = np.eye(n) - np.ones((n, n)) / n
    weights = []
    for one in members:
        values, vectors = np.linalg.eigh(keep[np.ix_(one, one)])
        weights.append(vectors @ np.diag(values.clip(1e-12) ** -0.5) @ vectors.T @ np.ones(len(one)))
    residuals = keep @ data
    variance = sum((w @ residuals[one]) ** 2 for w, one in zip(weights, members, strict=True)) / n**2
    p = np.stack([keep[:, one] @ w for w, one in zip(weights, members, strict=True)])
    products = p @ p.T
    error, freedom = cluster_error(data, members)
    assert freedom == pytest.approx(np.trace(products) ** 2 / np.sum(products**2), rel=1e-6)
    plain = data.std(ddof=1) / n**0.5
    assert error == pytest.approx(max(variance**0.5, plain), rel=1e-6)


@pytest.mark.parametrize("sizes", [[199, 1], [190, 5, 5], [150, *[10] * 5], [100, *[1] * 100], [50] * 4])
def test_a_cluster_that_holds_most_problems_proves_nothing_by_itself(sizes: list[int]) -> None:
    """Equal policies on independent problems: one of twenty is told apart at most, and intervals hold the truth."""
    names = [str(cluster) for cluster, size in enumerate(sizes) for _ in range(size)]
    alarms = covered = 0
    for seed in range(300):
        a, b = np.random.default_rng(seed).binomial(1, 0.5, size=(2, len(names))).astype(float)
        alarms += compare(a.tolist(), b.tolist(), clusters=names).proven
        low, high = mean_interval(a.tolist(), clusters=names)
        covered += low <= 0.5 <= high
    assert alarms / 300 <= 0.08 and covered / 300 >= 0.92
    one = [0.0] * len(names)
    assert not compare(one, [1.0, *one[1:]], clusters=names).proven


def test_clusters_of_one_change_nothing_and_one_cluster_is_one_observation() -> None:
    values = [float(x) for x in np.random.default_rng(0).binomial(1, 0.4, size=50)]
    names = [str(i) for i in range(50)]
    assert mean_interval(values, clusters=names) == mean_interval(values)
    assert compare(values, values[::-1], clusters=names) == compare(values, values[::-1])
    assert mean_interval([1.0], clusters=["all"]) == mean_interval([1.0])
    assert compare([0.0], [1.0], clusters=["all"]) == compare([0.0], [1.0])
    assert mean_interval(values, clusters=["all"] * 50) == wilson_interval(float(np.mean(values)), 1)
    for a, b in ((values, values[::-1]), ([0.0] * 50, [1.0] * 50)):
        alone = compare(a, b, clusters=["all"] * 50)
        assert (alone.low, alone.high, alone.p_value, alone.problems) == (-1, 1, 1, 50) and not alone.proven
        assert alone.method == "one cluster, which tells nothing of others"
    few = mean_interval([1.0] * 50, clusters=["a", "b"] * 25)
    assert few == wilson_interval(2, 2)  # two observations of which nothing is known but that they agree
    even = [1.0, 0.0] * 10  # every cluster has the mean of all
    half = 2.262 * np.std(even, ddof=1) / 20**0.5
    low, high = mean_interval(even, clusters=[str(i // 2) for i in range(20)])
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), 1e-3)
    better = compare([0.0] * 20, [1.0] * 20, clusters=[str(i % 2) for i in range(20)])
    assert better.p_value == 0.5 and not better.proven


@given(st.data())
def test_differences_of_rates_stay_between_minus_one_and_one(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    rates = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=count, max_size=count)
    names = data.draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count))
    found = compare(data.draw(rates), data.draw(rates), clusters=names)
    assert -1 <= found.low <= found.difference <= found.high <= 1
    assert found.width >= found.high - found.low - 1e-12


def test_what_an_interval_hides_is_not_cut() -> None:
    """Two families that disagree: a mean of which next to nothing is known."""
    found = compare([0.0] * 10 + [1.0] * 10, [1.0] * 10 + [0.0] * 10, clusters=["a"] * 10 + ["b"] * 10)
    assert (found.low, found.high) == (-1, 1) and found.width > 10


def test_six_of_165_against_three_proves_nothing() -> None:
    """The best case for a doubling from 3 to 6 of 165 problems: all three solved before are solved again."""
    before, after = [1.0] * 3 + [0.0] * 162, [1.0] * 6 + [0.0] * 159
    result = compare(before, after)
    assert result.p_value == pytest.approx(0.25) and not result.proven and result.method == "exact McNemar"
    assert (result.only_a, result.only_b, result.problems) == (0, 3, 165)
    assert result.difference == pytest.approx(3 / 165) and result.low <= result.difference <= result.high


@pytest.mark.parametrize("samples", [1, 4])
def test_equal_policies_are_rarely_told_apart_and_unequal_ones_mostly(samples: int) -> None:
    random = np.random.default_rng(samples)
    alarms = found = 0
    for trial in range(30):
        rates = random.beta(0.6, 0.9, size=100)
        a, b, better = (random.binomial(samples, r) / samples for r in (rates, rates, np.minimum(1, rates + 0.3)))
        alarms += compare(a.tolist(), b.tolist(), seed=trial).proven
        found += compare(a.tolist(), better.tolist(), seed=trial).proven
    assert alarms <= 5 and found >= 24


def test_a_comparison_needs_the_same_problems() -> None:
    for a, b in (([], []), ([1.0], [1.0, 0.0])):
        with pytest.raises(ValueError, match="same problems"):
            compare(a, b)
    same = compare([0.0, 1.0, 0.5], [0.0, 1.0, 0.5])
    assert (same.difference, same.p_value) == (0, 1)


@pytest.mark.parametrize("count", [1, 4, 6, 200])
@pytest.mark.parametrize("difference", [-1.0, 0.0, 0.125, 1.0])
def test_differences_that_are_all_alike_may_hide_others(count: int, difference: float) -> None:
    """If a share x of problems differed, so many would all be alike with (1 − x)^count, 0.025 at the ends."""
    found = compare([max(0.0, -difference)] * count, [max(0.0, difference)] * count)
    assert found.difference == difference
    for end, furthest in ((found.low, -1.0), (found.high, 1.0)):
        if furthest == difference:
            assert end == difference
        else:
            assert (1 - (end - difference) / (furthest - difference)) ** count == pytest.approx(0.025)
    assert (found.low > 0 or found.high < 0) == found.proven == ((1 + abs(difference)) ** count > 40)
    if abs(difference) == 1:
        assert found.p_value == pytest.approx(mcnemar(0, count))


def test_the_promised_power_is_what_a_simulation_finds() -> None:
    random = np.random.default_rng(0)
    within = 0.3 * 0.7
    problems = problems_needed(0.15, paired_deviation(within, 2))
    assert detectable_gain(problems, paired_deviation(within, 2)) == pytest.approx(0.15, abs=0.002)
    draws = random.binomial(2, 0.3, size=(4000, problems)), random.binomial(2, 0.45, size=(4000, problems))
    differences = (draws[1] - draws[0]) / 2
    z = differences.mean(axis=1) / (differences.std(axis=1, ddof=1) / problems**0.5)
    assert 0.74 <= (z > 1.96).mean() <= 0.86
    with pytest.raises(ValueError):
        problems_needed(0, 0.5)


def test_noise_of_one_completion_is_estimated_without_bias() -> None:
    random = np.random.default_rng(0)
    rates = random.beta(0.6, 0.9, size=20_000)
    counts = [(int(c), 4) for c in random.binomial(4, rates)]
    assert within_variance(counts) == pytest.approx(float(np.mean(rates * (1 - rates))), abs=0.005)
    assert within_variance([(1, 1), (0, 1), (0, 1), (0, 1)]) == pytest.approx(0.25 * 0.75)
    for right in (0, 8):  # nothing is certain
        assert within_variance([(right, 8)] * 4) == pytest.approx(1 / 34 * 33 / 34)
