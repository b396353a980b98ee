"""Whether the nodes of a Ray cluster can work as one: a replica is started on each, and what they tell is compared."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adapters.checkpoint import PROBE_TOLERANCE
from pipeline.config import RunConfig
from pipeline.scale.cluster import RayLauncher
from pipeline.scale.member import SAME_VERSIONS, reason_of
from pipeline.scale.replica import Replica

NODE_LIMIT = 900.0  # seconds until all nodes have loaded the model, which they may have to fetch
PROBE_LIMIT = 120.0
MEMORY_SHARE = 0.9  # of the others' free memory that a node must have


def nodes_told(config: RunConfig) -> list[tuple[str, dict[str, Any] | str]]:
    """What each node with room for a replica tells of itself, or why it could not; one after another, by name."""
    launcher = RayLauncher(config, Replica, trains=False)
    try:
        handles = [(name, launcher.start_on(node)) for name, node in launcher.nodes()]
        calls = [
            (name, handle.call("about"), handle.call("load", config, launcher.sharing), handle.call("probe"))
            for name, handle in handles
        ]
        told: list[tuple[str, dict[str, Any] | str]] = []
        deadline = time.monotonic() + NODE_LIMIT
        for name, place, load, probe in calls:
            try:
                about = load.result(timeout=max(0.0, deadline - time.monotonic()))
                about["probe"] = probe.result(timeout=PROBE_LIMIT)
                told.append((name, about))
            except TimeoutError:
                busy = "" if place.done() else "; has another run taken it?"
                told.append((name, f"it was not ready after {NODE_LIMIT:.0f} s{busy}"))
            except Exception as error:  # noqa: BLE001 - any failure is what is looked for
                told.append((name, reason_of(error)))
        return told
    finally:
        launcher.close()


def faults(told: Sequence[tuple[str, dict[str, Any] | str]]) -> list[str]:
    """A sentence for everything in which a node differs from most, or for why it could not start."""
    found = [f"node {name} could not start a replica: {why}" for name, why in told if isinstance(why, str)]
    nodes = [(name, about) for name, about in told if not isinstance(about, str)]
    looks: list[tuple[str, Callable[[Mapping[str, Any]], Any]]] = [
        *((name, lambda about, name=name: about["versions"].get(name)) for name in SAME_VERSIONS),  # type: ignore[misc]
        ("frozen weights", lambda about: about["fingerprint"]),
        ("grader tier", lambda about: about["tier"]),
    ]
    for what, look in looks:
        usual = Counter(look(about) for _, about in nodes).most_common(1)
        found += [
            f"node {name} has {what} {look(about)}, the others {usual[0][0]}"
            for name, about in nodes
            if look(about) != usual[0][0]
        ]
    if nodes:
        middle = np.median([about["probe"] for _, about in nodes], axis=0)
        size = max(float(np.linalg.norm(middle)), 1e-30)
        far = ((name, np.linalg.norm(about["probe"] - middle) / size) for name, about in nodes)
        wrong = [(name, error) for name, error in far if not error <= PROBE_TOLERANCE]
        found += [f"node {name} has other factors, by {error:.0%}" for name, error in wrong]
        most = max(about["free"] for _, about in nodes)
        found += [
            f"node {name} has {about['free'] / 1e9:.1f} GB free, another {most / 1e9:.1f}"
            for name, about in nodes
            if about["free"] < MEMORY_SHARE * most
        ]
    return found
