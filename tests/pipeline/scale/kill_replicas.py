"""Kill a replica of a training run at random moments; the run must end with all its steps and completions.

python tests/pipeline/scale/kill_replicas.py FOLDER --kills 20

Two replicas of the starter. The replica's process is killed with SIGKILL, the next time once it has come back and a
random time has passed, so kills hit loading, drawing, grading, training, taking a policy, and saving. Prints one line a
kill and a JSON line at the end; the exit code is 1 where a step or a completion is missing, or two replicas were never
seen together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))
NAME = "ray::TrainingReplica"
STARTING = {"idle", "load"}


def replica_processes() -> dict[int, str]:
    """The replicas' processes, and the method that each is in: Ray names a process after them."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = "".join(process.cmdline()).strip()
            if title.startswith(NAME):
                found[process.pid] = title.removeprefix(NAME).removeprefix(".") or "idle"
    return found


class Killer(threading.Thread):
    """Kills replicas until it has killed enough."""

    def __init__(self, kills: int, seed: int, slowest: float) -> None:
        super().__init__(daemon=True)
        self.left, self.chance, self.over = kills, random.Random(seed), threading.Event()
        self.dead: set[int] = set()
        self.slowest = slowest
        self.moments: list[str] = []  # the methods that were hit

    def run(self) -> None:
        while self.left and not self.over.is_set():
            alive = [pid for pid in replica_processes() if pid not in self.dead]
            if not alive:
                time.sleep(0.1)
                continue
            delay = self.chance.uniform(0.2, self.slowest)
            if self.over.wait(delay):
                return
            early = len(self.moments) > 1 and STARTING.issuperset(self.moments[-2:])
            while early and replica_processes().get(alive[0]) in STARTING:
                time.sleep(0.1)  # who dies three times in a row before it works is left alone for ten minutes
            moment = replica_processes().get(alive[0], "gone")
            os.kill(alive[0], signal.SIGKILL)
            self.dead.add(alive[0])
            self.moments.append(moment)
            self.left -= 1
            print(f"killed process {alive[0]} in {moment} after {delay:.1f} s, {self.left} kills left", flush=True)


def settings(folder: Path, steps: int) -> dict[str, Any]:
    sizes = {"steps": steps, "prompts_per_step": 4, "num_generations": 4, "max_samples": 40, "eval_problems": 8}
    return {"model": "starter", "replicas": "2", "grader_workers": 1, "output_dir": str(folder), **sizes}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=0, help="default: as many as the kills are likely to need")
    parser.add_argument("--slowest", type=float, default=60.0, help="seconds between a start and a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps = options.steps or 6 * options.kills
    from pipeline.config import Settings
    from pipeline.run_folder import read_json, read_json_lines
    from pipeline.training.run import train

    killer = Killer(options.kills, options.seed, options.slowest)
    killer.start()
    start = time.monotonic()
    folder = train(Settings(**settings(options.folder / "killed", steps)))
    killer.over.set()
    records = read_json_lines(folder / "metrics.jsonl")
    whole = [record["step"] for record in records] == list(range(1, steps + 1))
    rows = [len(read_json_lines(folder / "rollouts" / f"step-{step:05d}.jsonl")) for step in range(1, steps + 1)]
    mismatch = max(record["mismatch"] for record in records)  # of who drew and who trained
    together = sum(len(record["replicas"]) == 2 for record in records)
    result = {
        "kills": options.kills - killer.left,
        "moments": dict(Counter(killer.moments)),
        "steps": len(records),
        "all_completions": set(rows) == {16},
        "steps_with_both": together,
        "largest_mismatch": mismatch,
        "after": read_json(folder / "summary.json")["after"]["pass_at_1"],
        "seconds": round(time.monotonic() - start),
    }
    print(json.dumps(result))
    return int(not (whole and result["all_completions"] and together and mismatch < 1e-6))


if __name__ == "__main__":
    raise SystemExit(main())
