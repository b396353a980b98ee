"""What `bench.py learning` tells of runs: their gains, beside a difference computed apart, and their own records."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import bench as script
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from adapters.config import AdapterError
from pipeline.bench.learning import BASE, Trial, check_runs, names_of, run_rows, trial_rows
from pipeline.config import ConfigError, Settings, resolved
from pipeline.evaluation.evaluate import Evaluation
from pipeline.run_folder import read_json_lines
from rewards.problem import Problem
from rewards.verdict import Status, Verdict
from tests.forked import Forks
from tests.tiny_model import save_tiny_model

STORED = Path(__file__).parents[1] / "training" / "stored_run"


def judged(trial: Trial, accepted: np.ndarray, wrong: Status = Status.WRONG_ANSWER) -> Evaluation:
    shape = accepted.shape
    return Evaluation(
        problems=trial.problems,
        verdicts_P_S=[
            [Verdict(Status.ACCEPTED if one else wrong, int(one), 1, True) for one in row]
            for row in accepted
        ],
        texts_P_S=[["x"] * shape[1]] * shape[0],
        tokens_P_S=[[7] * shape[1]] * shape[0],
        max_tokens=8,
        seconds=1.0,
    )


def test_gains_are_differences_by_problem() -> None:
    generator = np.random.default_rng(0)
    trial = Trial("set", [Problem(f"p{i}", "") for i in range(60)], 1.0, 4)
    base = generator.random((60, 4)) < 0.4
    better = base | (generator.random((60, 4)) < 0.3)
    found = {BASE: judged(trial, base), "run": judged(trial, better)}
    rows = {row.what: row for row in trial_rows(trial, found, resolved(Settings(), starter=True, gpu=False))}
    first = rows["set, 60 problems, temperature 1, 4 each: base, pass@1"]
    assert first.value == pytest.approx(base.mean()) and first.baseline is None
    (told,) = [what for what in rows if ": run, pass@1, " in what]
    assert rows[told].value == pytest.approx(better.mean()) and rows[told].baseline == pytest.approx(base.mean())
    gain, low, high = (float(part) for part in re.findall(r"[+-]\d\.\d{3}", told))
    paired = better.mean(axis=1) - base.mean(axis=1)
    assert gain == pytest.approx(paired.mean(), abs=6e-4)
    error = paired.std(ddof=1) / np.sqrt(60)  # the interval is the bootstrap's, which is close to the normal one
    assert low == pytest.approx(gain - 1.96 * error, abs=0.5 * error)
    assert high == pytest.approx(gain + 1.96 * error, abs=0.5 * error)
    (whole,) = [row for what, row in rows.items() if ": run, pass@4, " in what]
    assert whole.value == pytest.approx(better.any(axis=1).mean())


def test_a_set_without_verdicts_has_no_pass_rate() -> None:
    """Of the base, of the run, of both, and where no problem has verdicts of both."""
    trial = Trial("set", [Problem("p0", ""), Problem("p1", "")], 0.0, 1)
    config = resolved(Settings(), starter=True, gpu=False)
    all_, none, first = (np.array([[a], [b]]) for a, b in ((True, True), (False, False), (True, False)))
    for base, run, known in ((none, all_, "run"), (all_, none, "base"), (none, none, ""), (first, ~first, "base run")):
        found = {BASE: judged(trial, base, Status.NO_VERDICT), "run": judged(trial, run, Status.NO_VERDICT)}
        rows = {row.what: row for row in trial_rows(trial, found, config)}
        for name in found:
            told = f"set, 2 problems, greedy: {name}, "
            assert (f"{told}pass@1" in rows) == (name in known)
            assert (f"{told}problems with 1 graded, so no pass@1" in rows) == (name not in known)


def test_a_run_tells_of_itself(tmp_path: Path) -> None:
    rows = {row.what: row.value for row in run_rows("run", STORED / "run")}
    metrics = read_json_lines(STORED / "run" / "metrics.jsonl")
    assert rows["run: steps"] == len(metrics) == 2
    known = [record["mismatch"] for record in metrics if "mismatch" in record]
    assert rows["run: mismatch of engine and trainer, mean of all steps"] == pytest.approx(sum(known) / len(known))
    assert not list(run_rows("run", tmp_path))


def test_what_cannot_be_judged_is_said_before_anything_loads(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        check_runs([tmp_path / "none"])
    done = CliRunner().invoke(script.bench, ["learning", str(STORED / "run" / "checkpoint-2"), "--model", "./nowhere"])
    assert done.exit_code == 2 and "error: --model ./nowhere: no such folder" in done.stderr
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError):
        check_runs([tmp_path / "empty"])
    runs = [shutil.copytree(STORED / "run" / "checkpoint-2", tmp_path / name / "run" / "checkpoint-2") for name in "ab"]
    assert names_of(runs) == ["run-checkpoint-2"] * 2
    with pytest.raises(ConfigError, match="called alike"):
        check_runs(runs)
    assert names_of([tmp_path / "a", tmp_path / "a" / "best", tmp_path / "b" / "best"]) == ["a", "a-best", "b-best"]


@pytest.mark.integration
@pytest.mark.skipif(torch.cuda.is_available(), reason="the stored run was trained on a CPU, in float32")
def test_the_command_judges_runs_beside_their_base(forks: Forks, tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    save_tiny_model(tmp_path / "model")
    questions = (tmp_path / "questions.jsonl").read_text()
    (tmp_path / "others.jsonl").write_text(questions.replace("What is", "How much is"))
    done = forks.run(
        "scripts/bench.py", "learning", "run/checkpoint-2", "--eval-dataset", "others.jsonl", "--samples", "2",
        "--limit", "3", "--out", "found.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["what"]: row for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert "others, 3 problems, temperature 1, 2 each: base, pass@1" in rows
    assert sum(what.startswith("others, 3 problems, greedy: run-checkpoint-2") for what in rows) == 3
    assert rows["run-checkpoint-2: steps"]["value"] == 2
    written = {path.name: len(read_json_lines(path)) for path in (tmp_path / "found").iterdir()}
    assert written == {
        "base-others-sampled.jsonl": 6,
        "base-others-greedy.jsonl": 3,
        "run-checkpoint-2-others-sampled.jsonl": 6,
        "run-checkpoint-2-others-greedy.jsonl": 3,
    }
