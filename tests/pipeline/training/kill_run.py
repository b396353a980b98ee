"""Kill a training run at random moments, continue it each time, and compare it with one that was left alone.

python tests/pipeline/training/kill_run.py FOLDER --kills 20 [--staleness 1]

The libraries are imported once; every run is a fork of this process, so twenty kills take a few minutes. Each third
kill waits for a checkpoint to be in the middle of being written. Prints one line a kill and a JSON line at the end; the
exit code is 1 where anything differs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.pipeline.kills import parser_of, steps_done, writing  # noqa: E402

TIMES = ("seconds", "tokens_per_second", "grading_hidden", "idle")  # differ from run to run
STEPS = 4


def settings(folder: Path, staleness: int) -> dict:
    return {
        "staleness": staleness,
        "scale_rewards": "batch",  # which waits for all verdicts: parts trained as they come would sum in another order
        "model": "starter",
        "steps": STEPS,
        "prompts_per_step": 2,
        "num_generations": 4,
        "max_samples": 20,
        "eval_problems": 4,
        "eval_every": 2,
        "grader_workers": 2,
        "output_dir": str(folder),
    }


def fork_run(folder: Path, staleness: int) -> int:
    """Start or continue the run in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        silent = os.open(folder.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        from pipeline.config import Settings
        from pipeline.run_folder import RunFolder
        from pipeline.training.run import stored_config, train

        resume = (folder / "config.yaml").is_file()
        config = stored_config(RunFolder.resume(str(folder)), {}) if resume else Settings(**settings(folder, staleness))
        train(config, resume=resume)
        code = 0
    except BaseException:  # noqa: BLE001 - a forked child must not return into the parent's code
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int, seconds: float, until: Callable[[], bool] = lambda: True) -> bool:
    """Wait until the child ends (True), or until the time is over and `until` holds (False)."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise SystemExit(f"a run ended with status {status}; see output.txt in the folder")
            return True
        late = time.monotonic() >= deadline
        if late and (until() or time.monotonic() > deadline + 60):
            return False
        time.sleep(0.0005 if late else 0.005)


def state(folder: Path) -> dict:
    """What a run leaves behind, without what may differ."""
    from adapters import read_checkpoint
    from pipeline.run_folder import read_json_lines

    def lines(name: str) -> list[dict]:
        records = read_json_lines(folder / name)
        return [{key: value for key, value in record.items() if key not in TIMES} for record in records]

    rollouts = {path.name: path.read_text() for path in sorted((folder / "rollouts").glob("*.jsonl"))}
    return {
        "v": read_checkpoint(folder).v.tolist(),
        "best": read_checkpoint(folder / "best").v.tolist(),
        "metrics": lines("metrics.jsonl"),
        "evaluations": lines("evaluations.jsonl"),
        "validation": lines("validation.jsonl"),
        "rollouts": rollouts,
    }


def main() -> int:
    parser = parser_of(__doc__ or "", kills=20)
    parser.add_argument("--staleness", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from pipeline.environment import prepare_environment
    from pipeline.policy.models import STARTER_FOLDER, import_libraries

    prepare_environment(str(STARTER_FOLDER))
    import_libraries()
    import pipeline.progress
    import pipeline.report.curves
    import pipeline.training.collapse
    import pipeline.training.run
    import pipeline.training.trainer  # noqa: F401 - all that a run imports, once

    whole = options.folder / "whole"
    start = time.monotonic()
    wait(fork_run(whole, options.staleness), 3600)
    total = time.monotonic() - start
    expected = state(whole)
    stepping = sum(r["seconds"]["step"] for r in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines()))
    print(f"left alone: {total:.1f} s, of which {stepping:.1f} s in {STEPS} steps", flush=True)

    numbers = random.Random(options.seed)
    differences, kills, runs = [], 0, 0
    while kills < options.kills:
        runs += 1
        cut = options.folder / f"cut-{runs}"
        finished = False
        while not finished:
            child = fork_run(cut, options.staleness)
            if kills >= options.kills:
                finished = wait(child, 3600)
                break
            delay = numbers.uniform(0, total - stepping + 2 * stepping / STEPS)
            finished = wait(child, delay, partial(writing, cut) if kills % 3 == 2 else lambda: True)
            if not finished:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
                half = " while a checkpoint was being written" if writing(cut) else ""
                print(f"kill {kills}: after {delay:.2f} s, {steps_done(cut)} steps logged{half}", flush=True)
        found = state(cut)
        differences += [f"{cut.name}: {name}" for name in expected if found[name] != expected[name]]
    result = {"kills": kills, "runs": runs, "steps": STEPS, "differences": differences}
    print(json.dumps(result | {"seconds": round(time.monotonic() - start)}))
    return bool(differences)


if __name__ == "__main__":
    raise SystemExit(main())
