"""Kill the driver of a run with two replicas at random moments; nothing of it may stay, and `--resume` goes on.

python tests/pipeline/scale/kill_driver.py FOLDER --kills 3

Two replicas of the starter through `scripts/train.py`. SIGKILL hits the driver a random time after its start or after
one of its steps. Every process that it had started, replicas, graders and Ray's, must then end by itself within
`--patience` seconds (two agents of Ray's look for a minute whether it comes back), and the run goes on with
`--resume`; the last time it is left alone. Prints one line a kill and a JSON line at the end; the exit code is 1 where
a process stays, or a step or a completion is missing or there twice.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))
SIZES = {"prompts-per-step": 4, "num-generations": 4, "max-samples": 40, "eval-problems": 8, "grader-workers": 1}


class Driver:
    """One life of the driver, and all processes that came of it."""

    def __init__(self, folder: Path, steps: int, resume: bool, extra: list[str]) -> None:
        options = ["--output-dir", str(folder), "--steps", str(steps)]
        if resume:
            options.append("--resume")
        else:
            sizes = [text for name, value in SIZES.items() for text in (f"--{name}", str(value))]
            options += ["--model", "starter", "--replicas", "2", *sizes, *extra]
        self.log = (folder.parent / f"{folder.name}.log").open("a", encoding="utf-8")
        self.process = psutil.Popen(
            [sys.executable, str(ROOT / "scripts/train.py"), *options], stdout=self.log, stderr=self.log
        )
        self.seen: set[psutil.Process] = set()

    def running(self, seconds: float) -> Iterator[None]:
        """Looks twice a second, for so long, which processes there are; ends early where the driver does."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            self.look()
            yield
            time.sleep(0.5)

    def look(self) -> None:
        for process in [self.process, *self.seen]:
            with suppress(psutil.Error):
                self.seen.update(process.children(recursive=True))

    def kill(self) -> None:
        self.look()
        self.process.kill()
        self.process.wait()

    def left(self, patience: float) -> tuple[list[str], float]:
        """What is still there of it after so many seconds, and how long it took to end."""
        start = time.monotonic()
        while alive := [text for process in self.seen if (text := described(process))]:
            if time.monotonic() - start > patience:
                break
            self.look()
            time.sleep(0.2)
        return alive, time.monotonic() - start


def described(process: psutil.Process) -> str:
    """What a process is; empty where it has ended."""
    with suppress(psutil.Error):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return f"{process.pid} {' '.join(process.cmdline()).strip()[:150]}"
    return ""


def steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=90.0)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one life of the driver")
    parser.add_argument("extra", nargs="*", help="further options of the first start, after --")
    options = parser.parse_args()
    chance, steps = random.Random(options.seed), 2 * options.kills + 2
    folder = options.folder / "killed"
    options.folder.mkdir(parents=True, exist_ok=True)
    orphans: list[str] = []
    slowest = 0.0
    for number in range(options.kills):
        driver = Driver(folder, steps, number > 0, options.extra)
        # every third kill comes while the driver starts, the others after two steps more and in the midst of one
        wanted = steps_done(folder) + (0 if number % 3 == 2 else 2)
        for _ in driver.running(options.limit):
            if steps_done(folder) >= wanted:
                break
        for _ in driver.running(chance.uniform(5.0, 25.0) if number % 3 == 2 else chance.uniform(0.2, 3.0)):
            pass
        assert driver.process.poll() is None, f"the driver ended by itself; see {driver.log.name}"
        done, count = steps_done(folder), len(driver.seen)
        driver.kill()
        left, seconds = driver.left(options.patience)
        orphans += left
        slowest = max(slowest, seconds)
        print(f"killed the driver after {done} steps; of {count} processes {left or 'none'} stay", flush=True)
        for process in driver.seen:
            with suppress(psutil.Error):
                process.kill()
    driver = Driver(folder, steps, options.kills > 0, options.extra)
    for _ in driver.running(options.limit):
        pass
    from pipeline.run_folder import read_json_lines

    records = read_json_lines(folder / "metrics.jsonl")
    rows = [len(read_json_lines(path)) for path in sorted((folder / "rollouts").glob("step-*.jsonl"))]
    left, _ = driver.left(options.patience)
    result = {
        "kills": options.kills,
        "exit": driver.process.wait() if driver.process.poll() is not None else "it did not end",
        "steps": [record["step"] for record in records] == list(range(1, steps + 1)),
        "completions": rows == [16] * steps,
        "steps_with_both": sum(len(record["replicas"]) == 2 for record in records),
        "orphans": [*orphans, *left],
        "slowest_end": round(slowest, 1),
    }
    print(json.dumps(result))
    whole = result["exit"] == 0 and result["steps"] and result["completions"]
    return int(not (whole and result["steps_with_both"] == steps and not result["orphans"]))


if __name__ == "__main__":
    raise SystemExit(main())
