"""Reward schemes as properties of the verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import GraderError
from rewards.scoring import SCHEMES, score
from rewards.verdict import Status, Verdict

FAILED = st.sampled_from([Status.WRONG_ANSWER, Status.TIME_LIMIT, Status.RUNTIME_ERROR, Status.MEMORY_LIMIT])


def verdict(passed: int, total: int, status: Status = Status.WRONG_ANSWER) -> Verdict:
    return Verdict(Status.ACCEPTED if passed == total else status, passed, total, compiled=True)


@given(st.integers(1, 50), st.data(), st.sampled_from(SCHEMES), FAILED, st.floats(0, 0.99))
def test_bounds_and_order(total: int, data: st.DataObject, scheme: str, status: Status, credit: float) -> None:
    passed = data.draw(st.integers(0, total - 1))
    here = score(verdict(passed, total, status), scheme, credit)
    more = score(verdict(passed + 1, total, status), scheme, credit)
    assert here is not None and more is not None
    assert 0 <= here <= more <= 1
    assert score(verdict(total, total), scheme, credit) == 1
    assert here < 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_for_nothing(scheme: str) -> None:
    for status in (Status.NO_CODE, Status.COMPILE_ERROR):
        assert score(Verdict(status, total=5), scheme) == 0
    assert score(Verdict(Status.WRONG_ANSWER, compiled=True), scheme) == 0  # a problem without tests
    assert score(Verdict(Status.NO_VERDICT, total=5), scheme) is None


def test_values() -> None:
    assert score(verdict(3, 4)) == 0.5 + 0.5 * 3 / 4
    assert score(verdict(0, 4)) == 0.5
    assert score(verdict(1, 4), compile_credit=0.2) == pytest.approx(0.4)
    assert score(verdict(0, 4), compile_credit=0) == 0
    assert score(verdict(3, 4), "pass-rate") == 0.75
    assert score(verdict(3, 4), "binary") == 0
    assert score(verdict(3, 4), "perfect-bonus") == 0.375


def test_bad_options() -> None:
    with pytest.raises(GraderError, match="tiered"):
        score(verdict(1, 1), "best")
    with pytest.raises(GraderError, match="credit"):
        score(verdict(1, 1), compile_credit=1.0)
