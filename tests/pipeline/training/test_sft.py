"""The warm-up: examples, refusals, and that its model folder is one that training takes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from data.starter.worked import worked_problems
from pipeline.config import ConfigError, Settings, resolved
from pipeline.config.warm_up import WarmUp
from pipeline.policy.models import STARTER_FOLDER
from pipeline.tasks.code import TASK as CODE
from pipeline.tasks.gsm8k import TASK as GSM8K
from pipeline.tasks.problem_sets import load_problem_sets
from pipeline.training import sft
from pipeline.training.sft import training_rows
from rewards.grader.harness import grade
from rewards.grader.pool import GraderPool


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"steps": 0}, "--steps"),
        ({"method": "prayer"}, "--method"),
        ({"method": "full", "quant": "nf4"}, "quantised"),
        ({"lr": -1.0}, "--lr"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, wrong: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        WarmUp(str(tmp_path / "out"), **wrong)


def test_several_processes_are_refused_and_untested_versions_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import versions
    from pipeline.training.sft import warm_up

    asked = WarmUp(str(tmp_path / "out"), model="starter", task="code", dataset="starter", max_samples=4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2: "):
        warm_up(asked)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(versions.TESTED, "trl", ("0.1",))
    monkeypatch.setattr("pipeline.training.sft.made_ready", lambda choice: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        warm_up(asked)
    assert capsys.readouterr().err.startswith("warning: never tested with trl ")


def test_a_folder_that_cannot_be_made_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training.sft import warm_up

    monkeypatch.setattr("pipeline.training.sft.choose_model", lambda *_: 1 / 0)
    (tmp_path / "afile").touch()
    for out in (tmp_path / "afile" / "x", Path("/proc/x")):
        with pytest.raises(ConfigError, match=f"^--output-dir {out}: the folder cannot be made"):
            warm_up(WarmUp(str(out), model="starter"))


def test_nothing_is_written_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        WarmUp(str(tmp_path))


def test_starter_examples_are_right() -> None:
    problems = worked_problems(3, 1)
    with GraderPool(1, quiet=True) as pool:
        verdicts = [grade(pool, problem.solution, problem).result() for problem in problems]
    assert all(verdict.accepted for verdict in verdicts)
    assert CODE.target(problems[0]).startswith("```cpp\n#include") and CODE.target(problems[0]).endswith("\n```")


def test_no_example_is_a_problem_that_training_holds_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [json.dumps({"question": f"q{index}", "answer": f"It is.\n#### {index}"}) for index in range(60)]
    path.write_text("\n".join(rows) + "\n")
    config = resolved(Settings(task="gsm8k", dataset=str(path), eval_split="all"), starter=False, gpu=False)
    sets = load_problem_sets(config)
    examples = sft.worked_problems(config, GSM8K, WarmUp(task="gsm8k", dataset=str(path), output_dir="x"))
    assert len(sets.held_out) == 6 and len(examples) == 54
    assert not {problem.id for problem in sets.held_out} & {problem.id for problem in examples}


def test_long_examples_are_dropped_and_counted(tiny_model_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    problems = worked_problems(6, 1)
    rows, dropped = training_rows(problems, CODE, tokenizer, 100_000)
    assert len(rows) == 6 and dropped == 0 and [m["role"] for m in rows[0]["prompt"]] == ["system", "user"]
    lengths = sorted(
        len(tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"])
        for row in rows
    )
    kept, dropped = training_rows(problems, CODE, tokenizer, lengths[2])
    assert (len(kept), dropped) == (3, 3)
    with pytest.raises(ConfigError, match="--max-length"):
        training_rows(problems, CODE, tokenizer, 3)


def run(script: str, *arguments: str) -> None:
    done = CliRunner().invoke(importlib.import_module(script).main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.integration
@pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="the starter model has not been made")
@pytest.mark.parametrize("task, method, dataset", [("gsm8k", "full", "rows.jsonl"), ("code", "lora", "starter")])
def test_the_starter_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, method: str, dataset: str
) -> None:
    monkeypatch.chdir(tmp_path)
    import torch
    from safetensors.torch import load_file

    rows = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(34)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", "starter", "--task", task, "--dataset", dataset, "--method", method]
    options += ["--steps", "4", "--batch-size", "4", "--max-samples", "30", "--lr", "1e-3", "--output-dir", "warm"]
    run("sft", *options)
    record = json.loads((tmp_path / "warm" / "sft.json").read_text())
    assert record["examples"] == 30 and record["dropped"] == 0 and record["last_loss"] > 0
    before, after = (load_file(folder / "model.safetensors") for folder in (STARTER_FOLDER, tmp_path / "warm"))
    assert set(after) >= {name for name in before if "proj" in name}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert after[name].shape == before[name].shape and after[name].dtype == before[name].dtype
    assert not torch.equal(after[name], before[name])
    small = ["--steps", "1", "--prompts-per-step", "2", "--num-generations", "2", "--eval-problems", "2"]
    small += ["--max-completion-length", "32", "--max-prompt-length", "400", "--u", "4", "--output-dir", "run"]
    monkeypatch.setattr("pipeline.training.calibration.COMPLETIONS", 16)  # as many prompts as the four scalars need
    data = (
        ["--task", task, "--dataset", dataset]
        if dataset != "starter"
        else ["--dataset", "starter", "--max-samples", "8"]
    )
    run("train", "--model", "warm", *data, *small)
    assert (tmp_path / "run" / "summary.json").is_file()
