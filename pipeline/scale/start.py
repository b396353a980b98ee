"""From the settings to replicas at work: none for `--replicas 1`, which never imports Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config import RunConfig
from pipeline.environment import gpu_count
from pipeline.policy.loading import Policy
from pipeline.scale.cluster import RayLauncher
from pipeline.scale.engine import FleetEngine
from pipeline.scale.fleet import Fleet
from pipeline.scale.member import Launcher
from pipeline.scale.replica import seats_of


@contextmanager
def launching(config: RunConfig, kind: type) -> Iterator[Launcher | None]:
    """What starts replicas of a class; None where one is all. Before CUDA is: it chooses the driver's GPU."""
    if config.replicas == "1":
        yield None
        return
    launcher = RayLauncher(config, kind)
    try:
        yield launcher
    finally:
        launcher.close()


@contextmanager
def fleet_of(launcher: Launcher | None, config: RunConfig) -> Iterator[Fleet | None]:
    """The other replicas of a run, which start to load at once; None where there are none."""
    if launcher is None:
        yield None
        return
    with Fleet(launcher, config) as fleet:
        yield fleet


def sharing_of(launcher: Launcher | None) -> int:
    """How many replicas share the cores of this node."""
    return 1 if launcher is None else launcher.sharing or max(1, gpu_count())


def lead(policy: Policy, fleet: Fleet | None, config: RunConfig) -> None:
    """Make the driver's policy that of all replicas: its engine draws with theirs from now on."""
    if fleet is not None:
        policy.engine = FleetEngine(policy, fleet, seats_of(policy, config))
