"""pass@k and its intervals."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics import mean_interval, pass_at_k, wilson_interval


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


def test_bootstrap_interval_covers_the_mean_about_95_times_in_100() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = mean_interval((random.binomial(4, 0.4, size=150) / 4).tolist(), seed=trial)
        covered += low <= 0.4 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_constant_data_has_a_wilson_interval() -> None:
    assert mean_interval([0.0] * 50) == wilson_interval(0, 50)
    low, high = mean_interval([1.0] * 50)
    assert 0.9 < low < high == pytest.approx(1.0)
    assert wilson_interval(3, 165) == pytest.approx((0.0062, 0.0521), abs=5e-4)
