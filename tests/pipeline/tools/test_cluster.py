"""A node that differs is named; nodes that are alike are not."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.tools.cluster import faults


def about(**other: Any) -> dict[str, Any]:
    probe = np.array([1.0, -2.0, 0.5], np.float32)
    told = {"versions": {"torch": "2.11.0"}, "fingerprint": "f", "tier": "A", "probe": probe, "free": 140_000_000_000}
    return told | other


def test_who_differs_is_named() -> None:
    alike = [("a", about()), ("b", about(probe=about()["probe"] * 1.001))]
    assert faults(alike) == []
    for other, said in (
        (about(versions={"torch": "2.10.0"}), "node c has torch 2.10.0, the others 2.11.0"),
        (about(fingerprint="g"), "node c has frozen weights g, the others f"),
        (about(tier="B"), "node c has grader tier B, the others A"),
        (about(probe=-about()["probe"]), "node c has other factors, by 200%"),
        (about(free=20_000_000_000), "node c has 20.0 GB free, another 140.0"),
        ("MemoryError: full", "node c could not start a replica: MemoryError: full"),
    ):
        assert faults([*alike, ("c", other)]) == [said]
