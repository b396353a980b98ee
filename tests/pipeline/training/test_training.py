"""Whole runs of the commands on the bundled starter: what they leave behind, and that a killed run continues."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import yaml

from adapters import read_checkpoint
from pipeline.policy.models import STARTER_FOLDER
from pipeline.run_folder import read_json_lines
from tests.forked import ROOT, Forks

SMALL = ["--model", "starter", "--prompts-per-step", "4", "--num-generations", "4", "--eval-problems", "8"]
SMALL += ["--max-samples", "40", "--seed", "3"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="the starter has not been made (scripts/make_starter.py)"),
]


def run(forks: Forks, script: str, *arguments: str, cwd: Path) -> str:
    done = forks.run(f"scripts/{script}", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(forks: Forks, folder: Path, *options: str) -> str:
    return run(forks, "train.py", *SMALL, "--output-dir", str(folder), *options, cwd=folder.parent)


def killed_after(forks: Forks, folder: Path, steps: int, *options: str) -> None:
    """Start a run and kill it, as a power cut would, once it has logged `steps` steps."""
    process = forks.start("scripts/train.py", *SMALL, "--output-dir", str(folder), *options, cwd=folder.parent)
    deadline = time.monotonic() + 300
    while len(read_json_lines(folder / "metrics.jsonl")) < steps:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)


def without_times(records: list[dict]) -> list[dict]:
    timed = ("seconds", "tokens_per_second", "grading_hidden", "idle")
    return [{key: value for key, value in record.items() if key not in timed} for record in records]


def test_a_killed_run_continues_to_the_same_vector(forks: Forks, tmp_path: Path) -> None:
    """With vLLM and the options' defaults; test_kills.py kills runs without it, at any moment."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    options = ["--steps", "3", "--vllm"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    printed = train(forks, whole, *options)
    assert printed.startswith("model: starter (given with --model)")
    killed_after(forks, cut, 1, *options)
    run(forks, "train.py", "--resume", "--output-dir", str(cut), cwd=tmp_path)
    expected, resumed = read_checkpoint(whole).v, read_checkpoint(cut).v
    assert expected.abs().sum() > 0
    assert resumed.tolist() == expected.tolist()
    metrics = [read_json_lines(folder / "metrics.jsonl") for folder in (whole, cut)]
    assert [record["step"] for record in metrics[1]] == [1, 2, 3]
    assert without_times(metrics[0]) == without_times(metrics[1])


@pytest.fixture(scope="module")
def finished(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = ["--steps", "2", "--no-vllm", "--groups", "2", "--num-iterations", "2", "--beta", "0.01"]
    return folder, train(forks, folder, *options, "--eval-every", "1")


def test_a_run_leaves_what_it_promises(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert yaml.safe_load((folder / "config.yaml").read_text())["groups"] == 2
    summary = json.loads((folder / "summary.json").read_text())
    for side in ("before", "after"):
        assert summary[side]["n"] == 8 and 0 <= summary[side]["low"] <= summary[side]["pass_at_1"]
    assert summary["engine"] == "transformers" and summary["trainable_scalars"] == 64 and "torch" in summary["versions"]
    first, second = read_json_lines(folder / "metrics.jsonl")
    for key in ("reward", "pass_rate", "compile_rate", "kl_base", "mismatch", "kept_share"):
        assert isinstance(first[key], float) and key not in ("pass_rate",) or 0 <= first[key] <= 1
    assert set(first["seconds"]) >= {"generate", "grade_wait", "train", "refresh"}
    assert second["v_norm"] > first["v_norm"] > 0 and len(first["v"]) == 64
    assert "pass_rate" not in second  # the second optimizer step reuses the rollouts of the first
    rollouts = read_json_lines(folder / "rollouts" / "step-00001.jsonl")
    assert len(rollouts) == 16 and {"problem", "completion", "verdict", "reward", "advantage"} <= set(rollouts[0])
    assert (folder / "tinylora.safetensors").stat().st_size < 10_000
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / ".partial").exists() or not any((folder / ".partial").iterdir())


def test_a_checkpoint_is_evaluated_beside_its_base(forks: Forks, finished: tuple[Path, str]) -> None:
    folder, _ = finished
    options = ["--baseline", "--pass-at", "1,2", "--no-vllm"]
    run(forks, "eval.py", "--checkpoint", str(folder), *options, cwd=folder.parent)
    evaluation = json.loads((folder / "eval.json").read_text())
    for name in ("baseline", "checkpoint"):
        assert evaluation[name]["pass@2"]["pass_at_2"] >= evaluation[name]["pass@1"]["pass_at_1"]
        assert evaluation[name]["pass@2"]["n"] == 16


def fails(forks: Forks, script: str | Path, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command that must end with exit code 2 and one line; returns that line."""
    done = forks.run(ROOT / "scripts" / script, *arguments, cwd=cwd, env=env, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line


def test_bad_input_ends_with_one_sentence_before_a_model_is_loaded(forks: Forks, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    good = '{"id": "a", "statement": "s", "tests": [{"input": "", "output": ""}]}'
    bad.write_text(good + '\n{"id": "b", "statement": 3}\n')
    assert "no such file" in fails(forks, "train.py", "--dataset", "none.jsonl", *SMALL, cwd=tmp_path)
    said = fails(forks, "train.py", "--dataset", str(bad), *SMALL, cwd=tmp_path)
    assert "bad.jsonl, line 2: field 'statement'" in said
    assert "--u must be greater than 0" in fails(forks, "train.py", "--u", "0", cwd=tmp_path)
    assert "--num-samples 1 is less" in fails(forks, "eval.py", "--pass-at", "1,4", "--num-samples", "1", cwd=tmp_path)
    assert "g++" in fails(forks, "train.py", *SMALL, cwd=tmp_path, env={"PATH": ""})
    script = tmp_path / "train.py"  # on a machine without vLLM: nothing of that name can be found
    script.write_text(
        "import importlib.util as u, runpy, sys\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'vllm' else find(name, package)\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "runpy.run_path(sys.path[0] + '/train.py', run_name='__main__')\n"
    )
    assert "vLLM is not installed" in fails(forks, script, "--vllm", *SMALL, cwd=tmp_path)


def test_a_checkpoint_of_another_model_is_refused(forks: Forks, tmp_path: Path, tiny_model_folder: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: starter\n")
    options = ["--checkpoint", "run", "--model", str(tiny_model_folder), "--dataset", "starter"]
    options += ["--max-prompt-length", "384", "--max-completion-length", "224"]
    assert "was trained on starter" in fails(forks, "eval.py", *options, cwd=tmp_path)


def test_the_best_checkpoint_is_chosen_on_other_problems_than_are_reported(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    reported = read_json_lines(folder / "evaluations.jsonl")
    watched = read_json_lines(folder / "validation.jsonl")
    assert [r["step"] for r in reported] == [0, 2] and [r["step"] for r in watched] == [0, 1, 2]
    problems = {
        name: {row["problem"] for row in read_json_lines(folder / "rollouts" / f"{name}.jsonl")}
        for name in ("step-00001", "held-out-00000", "held-out-00002", "validation-00001")
    }
    assert problems["held-out-00000"] == problems["held-out-00002"]
    assert not problems["held-out-00000"] & problems["validation-00001"]
    assert not (problems["held-out-00000"] | problems["validation-00001"]) & problems["step-00001"]
    best = json.loads((folder / "best" / "best.json").read_text())
    values = {r["step"]: r["pass@1"]["pass_at_1"] for r in watched}
    assert best["pass_at_1"] == max(values.values()) == values[best["step"]]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["after"]["pass_at_1"] == reported[-1]["pass@1"]["pass_at_1"]  # of the last policy
    paired = summary["comparison"]["pass@1"]
    assert paired["difference"] == pytest.approx(summary["after"]["pass_at_1"] - summary["before"]["pass_at_1"])
    assert summary["comparison"]["conclusion"] in printed and f"p = {paired['p_value']:.2g}" in printed
