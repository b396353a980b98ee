"""What relays between the driver and its replicas would save, measured with real actors of Ray.

A relay has so many replicas below it: what the driver sends it passes on, their gradients it adds up, and what the
Fisher matrix is made of it strings together, so the driver hears of one part where there were many. No run uses relays;
this measures whether one should. A few processes answer for all replicas, each many times, since the processor time of
who asks does not depend on who answers; how long it takes by the clock is not measured, for all share this machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.scale.wire import Found, Vector, total_gradient

BELOW = 32  # replicas below a relay
ANSWERING, RELAYS = 4, 4  # processes
ROUNDS = 5  # steps measured, after one that is not
LIMIT = 120.0  # seconds for an answer


class Answering:
    """Replicas of which only the answers are there. found: to every gradient."""

    def __init__(self, found: Found) -> None:
        self._found = found

    def gradient(self, vector: Vector) -> Found:
        return self._found

    def serve(self, vector: Vector) -> dict[str, Any]:
        return {"digest": vector.digest, "begun": 0.0, "ended": 0.0, "notes": []}

    def measure(self, vector: Vector) -> tuple[float, int, int]:
        return 0.0, 1, 1


class Relay:
    """below: the actors that it passes on to, one for each of its replicas."""

    def __init__(self, below: list[Any]) -> None:
        self._below = below

    def gradient(self, vector: Vector) -> Found:
        return merged(self._all("gradient", vector))

    def serve(self, vector: Vector) -> list[dict[str, Any]]:
        return self._all("serve", vector)

    def measure(self, vector: Vector) -> tuple[float, ...]:
        return tuple(sum(part) for part in zip(*self._all("measure", vector), strict=True))

    def _all(self, method: str, vector: Vector) -> list[Any]:
        import ray

        return ray.get([getattr(actor, method).remote(vector) for actor in self._below], timeout=LIMIT)

    def processor(self) -> float:
        """Processor seconds of this process so far."""
        return time.process_time()


def merged(parts: Sequence[Found]) -> Found:
    """What several shares found as if they had been one."""
    observed = [part.observed for part in parts if part.observed is not None]
    scores, rows, gradients, groups = zip(*observed, strict=True)
    return Found(
        gradient=total_gradient([part.gradient for part in parts]),
        loss=sum(part.loss for part in parts),
        observed=(np.concatenate(scores), sum(rows), np.concatenate(gradients), np.concatenate(groups)),
        rows_trained=sum(part.rows_trained for part in parts),
        trained=sum(part.trained for part in parts),
    )


def relay_seconds(counts: Sequence[int], found: Found, vector: Vector, take: Any) -> dict[int, dict[str, float]]:
    """Processor seconds a step for each number of replicas: of the driver that asks them itself, of one that asks
    relays, and of one relay. found: the answer of a replica. take: what the driver does with all answers. Ray is
    running."""
    import ray

    answering = [ray.remote(num_cpus=0)(Answering).remote(found) for _ in range(ANSWERING)]
    relaying = [ray.remote(num_cpus=0)(Relay).remote(cycled(answering, BELOW)) for _ in range(RELAYS)]
    result = {}
    for count in counts:
        relays = -(-count // BELOW)
        flat, _ = step_seconds(cycled(answering, count), vector, take)
        driver, busy = step_seconds(cycled(relaying, relays), vector, take, relaying)
        result[count] = {"flat": flat, "driver": driver, "relay": busy / relays, "relays": relays}
    for actor in (*answering, *relaying):
        ray.kill(actor)
    return result


def cycled(actors: list[Any], count: int) -> list[Any]:
    return [actors[index % len(actors)] for index in range(count)]


def step_seconds(asked: list[Any], vector: Vector, take: Any, watched: Sequence[Any] = ()) -> tuple[float, float]:
    """Processor seconds of this process for the three calls of a step to all these actors, as the driver makes them,
    the least of some steps; and of the processes `watched` together, a step."""

    def call(method: str) -> list[Any]:
        futures = [getattr(actor, method).remote(vector).future() for actor in asked]
        return [future.result(timeout=LIMIT) for future in futures]

    def step() -> None:
        take(call("gradient"))
        call("measure")
        call("serve")

    step()
    before, times = processor_of(watched), []
    for _ in range(ROUNDS):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times), (processor_of(watched) - before) / ROUNDS


def processor_of(actors: Sequence[Any]) -> float:
    return sum(actor.processor.remote().future().result(timeout=LIMIT) for actor in actors)
