"""What this process may use of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import environment


@pytest.mark.parametrize(("allowed", "smaller"), [("1000000\n", True), ("max\n", False), (None, False)])
def test_a_containers_memory_is_the_machines(
    allowed: str | None, smaller: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "CONTAINER_MEMORY", tmp_path / "memory.max")
    if allowed is not None:
        environment.CONTAINER_MEMORY.write_text(allowed)
    assert (environment.machine_memory() == 1_000_000) is smaller and environment.machine_memory() > 0
