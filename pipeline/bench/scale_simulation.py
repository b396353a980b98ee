"""What the driver does in a step with up to 1,000 replicas, of which only their answers are made.

The driver's own code runs: dealing out groups, unpacking completions, cutting and packing shares, adding up gradients,
the optimizer's Fisher matrix, giving out `v`. A replica answers at once with arrays of the right sizes. What is counted
is processor time of this process, and beside it what Ray takes of it a call, measured with real actors on this
machine. Relays, which would pass on `v` and add up gradients, are reckoned from that: each does for those below it what
the driver does for as many.
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
from pipeline.scale.board import Board, Hand, Work
from pipeline.scale.cluster import start_ray
from pipeline.scale.shares import shares_of
from pipeline.scale.wire import Drawn, Found, Share, Vector, total_gradient
from pipeline.training.kl_step import KLAdam

SCALARS, GROUP, PROMPT, COMPLETION = 32, 8, 323, 193  # of the 3B benchmark
GROUPS_EACH = 4  # of a replica in a step
BELOW = 10  # replicas or relays below a relay
CALLS = {"put": 1, "take": 1 + GROUPS_EACH, "end": 1, "gradient": 1, "serve": 1, "measure": 1}  # of a replica a step
LIMIT = 0.050  # seconds of the driver a step


def measure(counts: list[int]) -> list[Row]:
    """Rows for each number of replicas, flat and through relays, and the bytes that cross."""
    torch.set_num_threads(1)  # idle threads would count as work
    call = ray_call_seconds()
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
    most, levels = max(counts), 1
    while BELOW**levels < most:
        levels += 1
    found = driver_seconds(BELOW)
    own = sum(found[name] for name in ("gradient", "serve", "optimizer")) + 3 * BELOW * call
    tree = f"{most} replicas as a tree, {BELOW} below each relay: gradients and v"
    rows.append(row(f"{tree}, the driver", 1000 * own, "ms", at_most=1000 * LIMIT))
    rows.append(row(f"{tree}, all {levels} levels one after another", 1000 * levels * own, "ms"))
    return rows + byte_rows()


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
    generator = np.random.default_rng(0)
    groups = count * GROUPS_EACH
    answers = [
        pickle.dumps(
            Found(
                gradient=generator.normal(size=(1, SCALARS)).astype(np.float32),
                observed=observed(GROUPS_EACH, index * GROUPS_EACH, generator),
                distance=(0.0, 0.0, GROUPS_EACH * GROUP * COMPLETION),
            )
        )
        for index in range(count)
    ]
    v = torch.zeros(1, SCALARS, requires_grad=True)
    optimizer = KLAdam([v], 0.02)
    bank = type("Bank", (), {"v": v, "projections": torch.zeros(252, SCALARS, 2, 2)})()

    def gradient() -> None:
        found = [pickle.loads(answer) for answer in answers]
        v.grad = torch.from_numpy(total_gradient([part.gradient for part in found]))
        optimizer.take_observed()
        for part in found:
            scores, rows, gradients, numbers = part.observed
            optimizer.observe(torch.from_numpy(np.array(scores)), rows)
            optimizer.observe_gradients(*(torch.from_numpy(np.array(x)) for x in (gradients, numbers)))

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
    vector = Vector.of(v, bank)

    def shares() -> None:
        for share in shares_of(batch, count, every_row=False):
            pickle.dumps(Share.of(share, vector))

    found = {"gradient": seconds_of(gradient)}
    found["optimizer"] = seconds_of(optimizer.step)
    return found | {"serve": seconds_of(serve), "deal": seconds_of(deal), "take": seconds_of(take),
                    "shares": seconds_of(shares)}  # fmt: skip


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


class Answering:
    """A replica of which only the answer is there."""

    def answer(self, found: Any) -> Any:
        return found


def ray_call_seconds(calls: int = 2000) -> float:
    """Processor seconds of this process for a call of an actor with a small argument and its answer."""
    import ray

    start_ray(num_cpus=1)
    actor = ray.remote(num_cpus=0)(Answering).remote()
    vector = Vector(np.zeros((1, SCALARS), np.float32), "0" * 32, "0" * 32)
    for _ in range(2):
        start = time.process_time()
        futures = [actor.answer.remote(vector).future() for _ in range(calls)]
        for future in futures:
            future.result(timeout=120)
        seconds = (time.process_time() - start) / calls
    ray.shutdown()
    return seconds
