"""What the driver does in a step with up to 1,000 replicas, of which only their answers are made.

The driver's own code runs: dealing out groups, unpacking completions, cutting and packing shares, adding up gradients,
the optimizer's Fisher matrix, giving out `v`. A replica answers at once with arrays of the right sizes. What is counted
is processor time of this process, and beside it what Ray takes of it a call, measured with real actors on this
machine; `scale_relays.py` measures relays.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.bench.form import Row, row
from pipeline.bench.scale_relays import BELOW, relay_seconds
from pipeline.scale.board import Board, Hand, Work
from pipeline.scale.cluster import start_ray, stop_ray
from pipeline.scale.shares import shares_of
from pipeline.scale.wire import Drawn, Found, Share, Vector, total_gradient
from pipeline.training.kl_step import KLAdam

SCALARS, GROUP, PROMPT, COMPLETION = 32, 8, 323, 193  # of the 3B benchmark
GROUPS_EACH = 4  # of a replica in a step
CALLS = {"put": 1, "take": 1 + GROUPS_EACH, "end": 1, "gradient": 1, "serve": 1, "measure": 1}  # of a replica a step
LIMIT = 0.050  # seconds of the driver a step


def measure(counts: list[int]) -> list[Row]:
    """Rows for each number of replicas, flat and through relays, and the bytes that cross."""
    torch.set_num_threads(1)  # idle threads would count as work
    folder = start_ray(num_cpus=1)
    try:
        call = ray_call_seconds()
        relayed = relays(counts)
    finally:
        stop_ray(folder)
    rows = [row("Ray: processor time of the driver for one call and its answer", 1000 * call, "ms")]
    for count in counts:
        found = driver_seconds(count)
        critical = sum(found[name] for name in ("gradient", "serve", "optimizer"))
        calls = sum(CALLS.values())
        rows.append(row(f"{count} replicas: gradients and v, added up and given out", 1000 * critical, "ms"))
        rows.append(row(f"{count} replicas: the same with Ray's calls", 1000 * (critical + 3 * count * call), "ms",
                        at_most=1000 * LIMIT))  # fmt: skip
        rows.append(row(f"{count} replicas: dealing and taking in, beside generation, with Ray's calls",
                        1000 * (found["deal"] + found["take"] + (calls - 3) * count * call), "ms"))  # fmt: skip
        rows.append(row(f"{count} replicas: cutting and packing shares", 1000 * found["shares"], "ms"))
        rows += relay_rows(count, relayed.get(count))
    return rows + byte_rows()


def relays(counts: Sequence[int]) -> dict[int, dict[str, float]]:
    """As `relay_seconds`, for the counts of which a relay is a part."""
    v, optimizer, bank = driver()
    found = answers(1)[0]

    def take(parts: Sequence[Found]) -> None:
        take_in(parts, v, optimizer)
        optimizer.step()

    return relay_seconds([count for count in counts if count > BELOW], found, Vector.of(v, bank), take)


def relay_rows(count: int, found: Mapping[str, float] | None) -> list[Row]:
    """Rows of what `relay_seconds` found for a number of replicas, and what the driver would still cut."""
    if found is None:
        return []
    number = int(found["relays"])
    shares = seconds_of(lambda: pack(batch_of(count * GROUPS_EACH), number))
    flat = f"{count} replicas, asked through actors: "
    tree = f"{count} replicas through {number} relays of {BELOW}: "
    return [
        row(flat + "gradients and v", 1000 * found["flat"], "ms", at_most=1000 * LIMIT),
        row(tree + "gradients and v, the driver", 1000 * found["driver"], "ms", at_most=1000 * LIMIT),
        row(tree + "gradients and v, each relay", 1000 * found["relay"], "ms"),
        row(tree + "cutting and packing shares, the driver", 1000 * shares, "ms"),
    ]


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A picture of what grows with the replicas, from the rows of the JSON file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines: dict[str, list[tuple[int, float]]] = {}
    for one in rows:
        count, _, what = one["what"].partition(" replicas: ")
        if what:
            lines.setdefault(what, []).append((int(count), one["value"]))
    figure, axis = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    for name, points in lines.items():
        axis.loglog(*zip(*points, strict=True), "o-", label=name)
    axis.axhline(1000 * LIMIT, color="grey", linestyle=":", label=f"{1000 * LIMIT:.0f} ms")
    axis.set(xlabel="replicas", ylabel="ms of the driver's processor a step")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def seconds_of(work: Any) -> float:
    """Processor seconds of a function, the least of three times."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def driver_seconds(count: int) -> dict[str, float]:
    """Processor seconds of each part of the driver's step with `count` replicas."""
    groups = count * GROUPS_EACH
    packed = [pickle.dumps(found) for found in answers(count)]
    v, optimizer, bank = driver()

    def gradient() -> None:
        take_in([pickle.loads(answer) for answer in packed], v, optimizer)

    def serve() -> None:
        vector = Vector.of(v, bank)
        for _ in range(count):
            pickle.dumps(vector)

    def deal() -> None:
        board = Board(COMPLETION)
        board.add(Work(tuple(range(GROUP * g, GROUP * (g + 1))), [0] * PROMPT) for g in range(groups))
        board.deal([Hand(GROUP * GROUPS_EACH) for _ in range(count)])

    drawn = pickle.dumps(
        [
            Drawn(index, np.zeros(COMPLETION, np.int32), np.zeros(COMPLETION, np.float32))
            for index in range(GROUPS_EACH * GROUP)
        ]
    )

    def take() -> None:
        for _ in range(count):
            for event in pickle.loads(drawn):
                _ = event.completion

    batch = batch_of(groups)
    found = {"gradient": seconds_of(gradient)}
    found["optimizer"] = seconds_of(optimizer.step)
    return found | {"serve": seconds_of(serve), "deal": seconds_of(deal), "take": seconds_of(take),
                    "shares": seconds_of(lambda: pack(batch, count))}  # fmt: skip


def driver() -> tuple[torch.Tensor, KLAdam, Any]:
    """What the driver makes steps with: `v`, its optimizer, as much of an adapter as a vector needs."""
    v = torch.zeros(1, SCALARS, requires_grad=True)
    return v, KLAdam([v], 0.02), type("Bank", (), {"v": v, "projections": torch.zeros(252, SCALARS, 2, 2)})()


def answers(count: int) -> list[Found]:
    """What so many replicas find in their shares."""
    chance = np.random.default_rng(0)
    return [
        Found(
            gradient=chance.normal(size=(1, SCALARS)).astype(np.float32),
            observed=observed(GROUPS_EACH, index * GROUPS_EACH, chance),
            distance=(0.0, 0.0, GROUPS_EACH * GROUP * COMPLETION),
        )
        for index in range(count)
    ]


def take_in(parts: Sequence[Found], v: torch.Tensor, optimizer: KLAdam) -> None:
    """As `DriverTrainer` does: the gradient of all, and what the step is made with beside it."""
    v.grad = torch.from_numpy(total_gradient([part.gradient for part in parts]))
    optimizer.take_observed()
    for part in parts:
        assert part.observed is not None
        scores, rows, gradients, numbers = part.observed
        optimizer.observe(torch.from_numpy(np.array(scores)), rows)
        optimizer.observe_gradients(*(torch.from_numpy(np.array(x)) for x in (gradients, numbers)))


def pack(batch: dict[str, torch.Tensor], count: int) -> None:
    """Cut a batch into shares and make of each what is sent."""
    vector = Vector(np.zeros((1, SCALARS), np.float32), "0" * 32, "0" * 32)
    for share in shares_of(batch, count, every_row=False):
        pickle.dumps(Share.of(share, vector))


def observed(groups: int, first: int, chance: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    """What a replica observed of so many groups: scores of completions and of shared prompts, gradients of groups."""
    rows = groups * GROUP
    scores, gradients = (chance.normal(size=(n, SCALARS)).astype(np.float32) for n in (rows + groups, groups))
    return scores, rows, gradients, first + np.arange(groups)


def batch_of(groups: int) -> dict[str, torch.Tensor]:
    """A batch of so many groups, as TRL takes it."""
    rows = groups * GROUP
    group = torch.arange(rows) // GROUP
    ones = torch.ones(rows, PROMPT, dtype=torch.long)
    mask = torch.ones(rows, COMPLETION, dtype=torch.long)
    batch = {"prompt_ids": ones + group.unsqueeze(1), "prompt_mask": ones}
    batch |= {"completion_ids": mask, "completion_mask": mask, "sampling_per_token_logps": mask.float()}
    return batch | {"advantages": torch.ones(rows), "group": group}


def byte_rows() -> list[Row]:
    """Bytes between the driver and one replica in a step of 256 completions, 32 prompts: what a wide-area link sees."""
    rows, groups = 256, 32
    vector = Vector(np.zeros((1, SCALARS), np.float32), "0" * 32, "0" * 32)
    found = Found(np.zeros((1, SCALARS), np.float32), observed=observed(groups, 0, np.random.default_rng(0)))
    events = [Drawn(i, np.zeros(COMPLETION, np.int32), np.zeros(COMPLETION, np.float32)) for i in range(rows)]
    sizes = {
        "v out": vector,
        "gradient and scores back": found,
        "completions with log-probabilities back": events,
        "a share of all rows out": Share.of(batch_of(groups), vector),
        "prompts out": [list(range(PROMPT)) for _ in range(groups)],
    }
    return [row(f"bytes a step of {rows} completions: {name}", len(pickle.dumps(what)), "bytes")
            for name, what in sizes.items()]  # fmt: skip


class Echo:
    """Gives back what it is asked with."""

    def answer(self, found: Any) -> Any:
        return found


def ray_call_seconds(calls: int = 2000) -> float:
    """Processor seconds of this process for a call of an actor with a small argument and its answer."""
    import ray

    actor = ray.remote(num_cpus=0)(Echo).remote()
    vector = Vector(np.zeros((1, SCALARS), np.float32), "0" * 32, "0" * 32)
    for _ in range(2):
        start = time.process_time()
        futures = [actor.answer.remote(vector).future() for _ in range(calls)]
        for future in futures:
            future.result(timeout=120)
        seconds = (time.process_time() - start) / calls
    ray.kill(actor)
    return seconds
