"""Kill a replica of a training run in every phase; each run must end like the one that was left alone.

python tests/pipeline/scale/kill_replicas.py FOLDER --kills 20

Two replicas of the starter, first left alone, then in as many runs as the kills need. SIGKILL hits the other replica's
process a random time after it has entered the phase that is aimed at: while it loads the model, draws, waits for
verdicts, trains, takes a policy, or while the driver saves a checkpoint. Prints one line a kill and a JSON line at the
end; the exit code is 1 where a step or a completion is missing, or `v` is another.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from pipeline.scale import cluster, start  # noqa: E402
from pipeline.scale.cluster import RayHandle  # noqa: E402
from pipeline.scale.fleet import Fleet  # noqa: E402
from pipeline.scale.member import Handle, Member  # noqa: E402
from pipeline.scale.replica import ASIDE  # noqa: E402
from tests.pipeline.kills import distance, missing, other_completions, parser_of, steps_done, writing  # noqa: E402

SIZES = {"prompts_per_step": 4, "num_generations": 4, "max_samples": 40, "eval_problems": 8, "grader_workers": 1}
METHODS = {"load": "loading", "generate": "generating", "gradient": "training", "log_probs": "training",
           "measure": "training", "serve": "refreshing"}  # fmt: skip
# Seconds that a replica has been in a phase when it is killed, at most.
LATEST = {"loading": 6.0, "generating": 1.0, "grading": 0.2, "training": 0.3, "refreshing": 0.0, "saving": 0.0}
FARTHEST = 1e-3  # of `v` from that of the run left alone, in its lengths


class WatchedHandle(RayHandle):
    """A replica of which is known what it was asked to do with the model."""

    def __init__(self, actor: Any) -> None:
        super().__init__(actor)
        self.asked: list[tuple[str, Future[Any]]] = []

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        call = super().call(method, *arguments)
        if method not in ASIDE:
            self.asked = [one for one in self.asked if not one[1].done()] + [(method, call)]
        return call

    @property
    def phase(self) -> str:
        """What it is doing. With nothing left to draw it and the driver wait for verdicts."""
        asked = self.asked
        doing = next((method for method, call in asked if not call.done()), "")
        return METHODS.get(doing, "") or ("grading" if asked and asked[-1][0] == "generate" else "")


class WatchedFleet(Fleet):
    """Tells the killer when it is there, what the driver says of a loss, and when a replica has joined."""

    killer: Killer

    def __enter__(self) -> WatchedFleet:
        self.killer.fleet, self.killer.folder = self, Path(self.config.output_dir or "")
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.killer.fleet = None
        super().__exit__(*error)

    def lost(self, member: Member, doing: str, error: BaseException | str, handle: Handle | None = None) -> None:
        if handle in (None, member.handle):
            self.killer.noticed.setdefault(member.place, doing)
        super().lost(member, doing, error, handle)

    def _join(self, member: Member) -> None:
        super()._join(member)
        self.killer.came(time.monotonic() - member.begun)


class Killer(threading.Thread):
    """Kills the other replica of the run under way. aims: the phases of the kills to come, in their order."""

    def __init__(self, aims: list[str], seed: int) -> None:
        super().__init__(daemon=True)
        self.aims, self.chance = aims, random.Random(seed)
        self.fleet: WatchedFleet | None = None  # of the run under way, and the run's folder
        self.folder = Path()
        self.kills: list[dict[str, Any]] = []
        self.noticed: dict[Future[Any], str] = {}  # what the driver lost a replica over, by the call for its place
        self.first: list[float] = []  # seconds of the starts with which runs began

    def run(self) -> None:
        while self.aims:
            time.sleep(0.001)
            if (fleet := self.fleet) and fleet.members:
                if self.aims[0] == "loading" and fleet.members[0].joined:
                    self.aims.append(self.aims.pop(0))  # it loads again after the next kill
                self.kill(fleet.members[0], self.aims[0])

    def kill(self, member: Member, aim: str) -> None:
        """Kill it if it is in the phase that is aimed at, and still is a random time later."""
        if not self.hits(member, aim):
            return
        time.sleep(self.chance.uniform(0, LATEST[aim]))
        if not self.hits(member, aim) or self.fleet is None:
            return
        place, done = member.place, steps_done(self.folder)
        os.kill(place.result()["pid"], signal.SIGKILL)
        self.aims.pop(0)
        self.kills.append({"phase": aim, "step": done, "at": time.monotonic(), "of": place, "folder": self.folder})
        print(f"killed while {aim}, {done} steps done, {len(self.aims)} kills left", flush=True)
        while member.place is place and self.fleet is not None:
            time.sleep(0.01)  # until the driver has noticed

    def hits(self, member: Member, aim: str) -> bool:
        place, handle = member.place, member.handle
        if not place.done() or place.exception() is not None or not isinstance(handle, WatchedHandle):
            return False
        if aim == "loading":
            return handle.phase == aim
        return member.joined and (writing(self.folder) if aim == "saving" else handle.phase == aim)

    def came(self, seconds: float) -> None:
        """A replica has joined, so long after it was started."""
        last: dict[str, Any] = self.kills[-1] if self.kills else {}
        if last.get("folder") != self.folder or "back" in last:
            self.first.append(seconds)
        else:
            last |= {"back": time.monotonic() - last["at"], "start": seconds}

    def report(self) -> list[dict[str, Any]]:
        """One record a kill: its phase, the steps done by then, what the driver lost the replica over, and the seconds
        until it was back, of which its new start took some."""
        return [{"phase": kill["phase"], "after_step": kill["step"], "noticed": self.noticed.get(kill["of"], ""),
                 "back": round(kill.get("back", 0), 1) or None, "start": round(kill.get("start", 0), 1) or None}
                for kill in self.kills]  # fmt: skip


def aims_of(kills: int, phases: list[str], seed: int) -> list[str]:
    """Each phase once a round, in another order each time: three deaths in a row while it loads would let it rest."""
    chance, aims = random.Random(seed), list[str]()
    while len(aims) < kills:
        aims += chance.sample(phases, len(phases))
    return aims[:kills]


def main() -> int:
    parser = parser_of(__doc__ or "", kills=20)
    parser.add_argument("--steps", type=int, default=40, help="of each run")
    parser.add_argument("--phases", nargs="+", choices=list(LATEST), default=list(LATEST))
    options = parser.parse_args()
    from pipeline.config import Settings
    from pipeline.run_folder import read_json, read_json_lines
    from pipeline.training.run import train

    killer = WatchedFleet.killer = Killer(aims_of(options.kills, options.phases, options.seed), options.seed)
    cluster.RayHandle, start.Fleet = WatchedHandle, WatchedFleet  # type: ignore[misc]
    begun, faults, runs = time.monotonic(), list[str](), list[dict[str, Any]]()

    def run(name: str) -> Path:
        settings = Settings(model="starter", replicas="2", steps=options.steps, output_dir=str(options.folder / name),
                            **SIZES)  # type: ignore[arg-type]  # fmt: skip
        return train(settings)

    whole = run("whole")
    killer.start()
    while killer.aims:
        before = len(killer.kills)
        folder = run(f"killed-{len(runs) + 1}")
        records = read_json_lines(folder / "metrics.jsonl")
        faults += missing(folder, options.steps, 16)
        runs.append({
            "kills": len(killer.kills) - before,
            "distance": distance(folder, whole),
            "other_completions": other_completions(folder, whole),
            "steps_with_both": sum(len(record["replicas"]) == 2 for record in records),
            "largest_mismatch": max(record["mismatch"] for record in records),
            "after": [read_json(path / "summary.json")["after"]["pass_at_1"] for path in (folder, whole)],
        })  # fmt: skip
        print(json.dumps(runs[-1]), flush=True)
        if len(killer.kills) == before:
            faults.append(f"no phase {killer.aims[0]} was found in {folder.name}")
            break
    report = killer.report()
    back = [kill["back"] for kill in report if kill["back"] and kill["phase"] != "loading"]
    result = {
        "kills": len(report),
        "phases": dict(Counter(kill["phase"] for kill in report)),
        "noticed": dict(Counter(kill["noticed"].partition(" (")[0] for kill in report)),
        "first_starts": [round(seconds, 1) for seconds in killer.first],
        "median_back": statistics.median(back) if back else None,
        "slowest_back": max(back, default=None),
        "runs": runs,
        "faults": faults,
        "seconds": round(time.monotonic() - begun),
    }
    for kill in report:
        print(json.dumps(kill))
    print(json.dumps(result))
    same = all(one["distance"] < FARTHEST and one["steps_with_both"] for one in runs)
    return int(bool(faults) or not same)


if __name__ == "__main__":
    raise SystemExit(main())
