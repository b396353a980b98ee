"""One grader pool for all tests of this folder: small limits, so that programs without an end are soon over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rewards.grader.pool import GraderPool


@pytest.fixture(scope="session")
def pool() -> Iterator[GraderPool]:
    with GraderPool(2, quiet=True, compile_cpu_s=5.0, idle_s=0.3) as pool:
        yield pool
