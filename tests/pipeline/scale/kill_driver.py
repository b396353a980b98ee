"""Kill the driver of a run with two replicas while it starts, steps and saves; nothing of it may stay, and `--resume`
goes on.

python tests/pipeline/scale/kill_driver.py FOLDER --kills 6

Two replicas of the starter through `scripts/train.py`. SIGKILL hits the driver, in turn, while a checkpoint is half
written, a random time after a step, and a random time after its start. Every process that it had started, replicas,
graders and Ray's, must then end by itself within `--patience` seconds (two agents of Ray's look for a minute whether it
comes back), and the run goes on with `--resume`; the last time it is left alone. Prints one line a kill and a JSON line
at the end; the exit code is 1 where a process stays, or a step or a completion is missing or there twice.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.pipeline.kills import missing, parser_of, steps_done, writing  # noqa: E402

SIZES = {"prompts-per-step": 4, "num-generations": 4, "max-samples": 40, "eval-problems": 8, "grader-workers": 1}
MOMENTS = ("saving", "stepping", "starting")
LOOK = 0.5  # seconds between two looks at which processes there are


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

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Until that holds (True), or the time is over or the driver has ended (False)."""
        start = looked = time.monotonic()
        while time.monotonic() - start < seconds and self.process.poll() is None:
            if until():
                return True
            if time.monotonic() - looked > LOOK:
                self.look()
                looked = time.monotonic()
            time.sleep(0.0005)
        return False

    def look(self) -> None:
        for process in [self.process] if self.process.is_running() else list(self.seen):
            with suppress(psutil.Error):
                self.seen.update(process.children(recursive=True))

    def kill(self) -> None:
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


def reach(driver: Driver, moment: str, folder: Path, chance: random.Random, limit: float) -> None:
    """Wait until the driver is where it is to be killed; to step or to save, after one step more."""
    if moment == "starting":
        driver.wait(chance.uniform(5.0, 25.0))
        return
    wanted = steps_done(folder) + 1
    driver.wait(limit, lambda: steps_done(folder) >= wanted)
    if moment == "saving":
        driver.wait(limit, partial(writing, folder))
    else:
        driver.wait(chance.uniform(0.2, 3.0))


def main() -> int:
    parser = parser_of(__doc__ or "", kills=6)
    parser.add_argument("--patience", type=float, default=90.0)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one life of the driver")
    parser.add_argument("extra", nargs="*", help="further options of the first start, after --")
    options = parser.parse_args()
    chance, steps = random.Random(options.seed), 2 * options.kills + 2
    folder = options.folder / "killed"
    options.folder.mkdir(parents=True, exist_ok=True)
    orphans: list[str] = []
    moments: list[str] = []
    slowest = 0.0
    for number in range(options.kills):
        driver = Driver(folder, steps, number > 0, options.extra)
        moment = MOMENTS[number % len(MOMENTS)]
        reach(driver, moment, folder, chance, options.limit)
        assert driver.process.poll() is None, f"the driver ended by itself; see {driver.log.name}"
        driver.kill()
        moments.append("saving" if writing(folder) else moment.replace("saving", "saved"))  # as the folder shows it
        left, seconds = driver.left(options.patience)
        orphans += left
        slowest = max(slowest, seconds)
        print(f"killed the driver, {moments[-1]}, after {steps_done(folder)} steps; of {len(driver.seen)} processes "
              f"{left or 'none'} stay, the last for {seconds:.0f} s", flush=True)  # fmt: skip
        for process in driver.seen:
            with suppress(psutil.Error):
                process.kill()
    driver = Driver(folder, steps, options.kills > 0, options.extra)
    driver.wait(options.limit)
    from pipeline.run_folder import read_json_lines

    records = read_json_lines(folder / "metrics.jsonl")
    left, _ = driver.left(options.patience)
    result = {
        "kills": options.kills,
        "moments": dict(Counter(moments)),
        "exit": driver.process.wait() if driver.process.poll() is not None else "it did not end",
        "faults": missing(folder, steps, 16),
        "steps_with_both": sum(len(record["replicas"]) == 2 for record in records),
        "orphans": [*orphans, *left],
        "slowest_end": round(slowest, 1),
    }
    print(json.dumps(result))
    whole = result["exit"] == 0 and not result["faults"] and result["steps_with_both"] == steps
    return int(not (whole and not result["orphans"]))


if __name__ == "__main__":
    raise SystemExit(main())
