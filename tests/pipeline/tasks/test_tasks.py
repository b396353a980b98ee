"""Tasks, their problems, mixing and advantage scales; and whole runs of the tasks on the CPU."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from data.problems import write_problems
from pipeline.config import ConfigError, RunConfig, Settings, parse_scales, resolved
from pipeline.policy.models import STARTER_FOLDER
from pipeline.run_folder import read_json_lines
from pipeline.tasks import TASKS, means, problem_sets, task_of, with_dataset
from pipeline.tasks.code import TASK as CODE
from pipeline.tasks.countdown import TASK as COUNTDOWN
from pipeline.tasks.graders import start_graders
from pipeline.tasks.gsm8k import TASK as GSM8K
from pipeline.tasks.problem_sets import advantage_scale, check_scales, load_problem_sets, read_dataset, training_order
from pipeline.tasks.q import TASK as Q
from rewards.errors import GraderError
from rewards.problem import Problem, Test
from rewards.verdict import Status, Verdict


def config(**settings) -> RunConfig:
    return resolved(with_dataset(Settings(**settings), starter=True), starter=True, gpu=False)


def test_countdown_is_judged_at_once() -> None:
    problem = Problem("a", "", numbers=(1, 2, 3), answer="9", language="")
    texts = ["<answer>(1 + 2) * 3</answer>", "<answer>1 + 2 + 3</answer>", "nine"]
    verdicts = [COUNTDOWN.grade(None, text, problem).result() for text in texts]
    assert [v.status for v in verdicts] == [Status.ACCEPTED, Status.WRONG_ANSWER, Status.NO_CODE]
    scores = COUNTDOWN.scores([problem] * 3, texts, verdicts, config(task="countdown"))
    assert scores == {"format_reward": [0.0, 0.0, 0.0], "equation_reward": [1.0, 0.0, 0.0]}
    assert COUNTDOWN.totals(scores) == [1.0, 0.0, 0.0] and means(scores)["equation_reward"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("task", [COUNTDOWN, GSM8K])
def test_the_target_of_a_problem_earns_the_full_reward(task) -> None:
    problems = {
        "countdown": Problem("a", "", numbers=(1, 2, 3), answer="9", solution="(1 + 2) * 3 = 9"),
        "gsm8k": Problem("a", "How many?", answer="9", solution="4 and 5 are 9."),
    }
    problem = problems[task.name]
    text = task.target(problem)
    verdict = task.grade(None, text, problem).result()
    assert verdict.accepted
    (total,) = task.totals(task.scores([problem], [text], [verdict], config(task=task.name, dataset="x")))
    assert total == pytest.approx({"countdown": 2.0, "gsm8k": 2.0 + 0.5 + 0.5 + 0.5 + 0.2 * 0.5}[task.name])


def test_the_function_that_a_problem_asks_for_is_taken() -> None:
    asked = Problem("f", "", (Test("int main() {}", ""),), preamble="int twice(int x) {\n", tests_are_code=True)
    completion = "```cpp\nint twice(int x) { return 2 * x; }\n```\nFor example:\n```cpp\nint main() { twice(3); }\n```"
    found = CODE.extract(completion, asked)
    assert found is not None and found.startswith("int twice")
    program = CODE.extract(completion, replace(asked, tests_are_code=False))
    assert program is not None and program.startswith("int main")


def test_a_target_that_is_no_number_cannot_be_graded() -> None:
    numbers = Problem("a", "", numbers=(1, 2))
    found = [COUNTDOWN.gradable(replace(numbers, answer=answer)) for answer in ("3", "-3", "", "three", "3.5")]
    assert found == [True, True, False, False, False]


def test_masked_rewards() -> None:
    lost, found = Verdict(Status.NO_VERDICT, total=4), Verdict(Status.ACCEPTED, passed=4, total=4, compiled=True)
    scores = CODE.scores([Problem("a", "")] * 2, ["", ""], [lost, found], config())
    assert CODE.totals(scores) == [None, 1.0] and means(scores) == {"code_reward": 1.0}
    scores = Q.scores(
        [Problem("a", "")] * 2, ["", ""], [lost, replace(found, status=Status.WRONG_ANSWER, passed=1)], config()
    )
    assert Q.totals(scores) == [None, 0.25]
    reasoning = task_of(config(task="q", template="q-reasoning", dataset="x"))
    assert [reward.name for reward in reasoning.rewards] == ["pass_rate", "perfect_bonus", "format_reward"]


def test_only_programs_need_graders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for task in ("countdown", "gsm8k"):
        with start_graders(config(task=task, dataset="x")) as none:
            assert none.describe()["tier"] == "none"
    for task, missing in (("code", "g++"), ("q", "q is missing")):
        with pytest.raises(GraderError, match=missing.replace("+", r"\+")):
            start_graders(config(task=task, dataset="x"))


def test_a_task_has_the_name_of_its_file() -> None:
    assert set(TASKS) >= {"code", "countdown", "gsm8k", "q"}
    assert all(task.name == name and not task.chosen for name, task in TASKS.items())


def test_a_run_without_a_data_set_has_that_of_its_task() -> None:
    found = [with_dataset(Settings(task=task), starter=True).dataset for task in ("code", "countdown")]
    assert found == ["starter", "generated"]
    assert with_dataset(Settings(task="countdown"), starter=False).dataset == "generated"
    assert with_dataset(Settings(dataset="x.jsonl"), starter=False).dataset == "x.jsonl"
    with pytest.raises(ConfigError, match="--dataset is missing: give a JSON-lines file"):
        with_dataset(Settings(), starter=False)


# --- problems of a run


def problem(name: str, text: str = "", **more) -> Problem:
    return Problem(name, text or f"Statement of {name}.", (Test("", name),), **more)


def write(path: Path, problems: list[Problem]) -> str:
    write_problems(path, problems)
    return str(path)


def test_generated_countdown() -> None:
    sets = load_problem_sets(config(task="countdown", max_samples=30, eval_problems=10))
    assert len(sets.train) == 30 and len(sets.held_out) == 10
    assert not {p.id for p in sets.train} & {p.id for p in sets.held_out}
    easy = load_problem_sets(config(task="countdown", max_samples=30, eval_problems=10, difficulty="3"))
    assert 0 < len(easy.train) < 30 and all(len(p.numbers) == 3 for p in easy.train + easy.held_out)
    with pytest.raises(ConfigError, match="no held-out problem"):
        load_problem_sets(config(task="countdown", max_samples=30, eval_problems=10, difficulty="easy"))
    assert len(load_problem_sets(config(task="countdown", max_samples=5, eval_problems=5, difficulty="")).train) == 5


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"task": "gsm8k"}, "--dataset is missing: give openai/gsm8k"),
        ({"task": "q"}, "--dataset is missing"),
        ({"task": "countdown", "dataset": "starter"}, "starter is for --task code"),
        ({"task": "code", "dataset": "generated"}, "generated is for --task countdown"),
        ({"task": "code", "dataset": "somewhere"}, "SOURCE:location"),
    ],
)
def test_data_sets_that_do_not_fit(settings: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_problem_sets(config(**settings))


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"task": "poetry"}, "--task"),
        ({"difficulty": "easy:800"}, "--difficulty"),
        ({"dataset": "a,b", "dataset_weights": "1"}, "1 numbers for 2 data sets"),
        ({"dataset": "a,b", "dataset_weights": "1,x"}, "--dataset-weights"),
        ({"dataset": "a,b", "dataset_weights": "1,0"}, "greater than 0"),
        ({"advantage_scale": "codeforces"}, "SOURCE=NUMBER"),
        ({"advantage_scale": "codeforces=-1"}, "from 0 on"),
    ],
)
def test_wrong_settings_are_named(wrong: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Settings(**wrong)


def test_rows_of_a_published_set_are_read_as_they_are(tmp_path: Path) -> None:
    raw = tmp_path / "rows.jsonl"
    raw.write_text(
        "".join(json.dumps({"question": f"q{i}", "answer": f"#### {i}"}) + "\n" for i in range(20))
        + '{"question": "x", "answer": "?"}\n'
    )
    found = read_dataset(str(raw), GSM8K)
    assert len(found) == 20 and found == read_dataset(f"gsm8k:{raw}", GSM8K)
    assert read_dataset(write(tmp_path / "prepared.jsonl", found), GSM8K) == found
    sets = load_problem_sets(config(task="gsm8k", dataset=str(raw)))
    assert len(sets.train) == 18 and len(sets.held_out) == len(sets.validation) == 1
    with pytest.raises(ConfigError, match="no problem has tests"):
        read_dataset(f"gsm8k:{raw}", CODE)


def test_what_a_machine_lacks_does_not_move_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a test set would hold what another machine, or this one before an installation, has trained on."""
    needy = {"p3", "p17", "p40"}
    place = write(tmp_path / "t.jsonl", [problem(f"p{index}", f"Statement {index}.") for index in range(60)])
    whole = load_problem_sets(config(dataset=place))
    monkeypatch.setattr(problem_sets, "missing_need", lambda one: "boost is missing" if one.id in needy else None)
    part = load_problem_sets(config(dataset=place))
    for name in ("train", "held_out", "validation"):
        kept = [one.id for one in getattr(whole, name) if one.id not in needy]
        assert [one.id for one in getattr(part, name)] == kept
    assert len(part.train) < len(whole.train)


def test_held_out_problems_are_not_trained_on(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [problem("a"), problem("b"), problem("c", "Same TEXT!")])
    held_out = write(tmp_path / "e.jsonl", [problem("z", "same text"), problem("a2", "Statement of a.")])
    sets = load_problem_sets(config(dataset=train, eval_dataset=held_out))
    assert [p.id for p in sets.train] == ["b"] and len(sets.held_out) == 2


def all_sets(**settings) -> dict[str, list[Problem]]:
    """The problems for each purpose, as a run and `eval.py` find them, and those to train on."""
    runs = [load_problem_sets(config(eval_split=split, eval_every=1, **settings)) for split in ("tuning", "test")]
    assert runs[0].train == runs[1].train and runs[0].validation == runs[1].validation
    purposes = {"tuning": runs[0].held_out, "test": runs[1].held_out, "validation": runs[0].validation}
    return purposes | {"train": runs[0].train}


@pytest.mark.parametrize("count", [60, 97])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_file_has_different_problems_for_each_purpose(tmp_path: Path, count: int, foreign: bool) -> None:
    path = write(tmp_path / "t.jsonl", [problem(f"p{i}", f"text {i % (count - 3)}") for i in range(count)])
    settings = {"dataset": path}
    if foreign:
        settings["eval_dataset"] = write(tmp_path / "e.jsonl", [problem("e1", "text 1"), problem("e2", "other")])
    sets = all_sets(**settings)
    texts = [{p.statement for p in part} for part in sets.values()]
    assert all(not a & b for i, a in enumerate(texts) for b in texts[:i]) and all(texts)
    held_out = sum(len(part) for name, part in sets.items() if name != "train")
    assert abs(held_out - 2 * foreign - round(count / 10)) <= 2  # but for copies
    assert not foreign or len(sets["test"]) == 2
    undivided = load_problem_sets(config(eval_split="all", **settings))  # as runs had it before
    assert undivided.validation == undivided.held_out
    assert len(undivided.held_out) == (2 if foreign else round(count / 10))


def test_problems_of_several_files_are_told_apart_where_their_ids_are_equal(tmp_path: Path) -> None:
    """A comparison pairs problems by their ids."""
    files = [write(tmp_path / f"{k}.jsonl", [problem(f"p{i}", f"{k} asks {i}") for i in range(60)]) for k in "abc"]
    for settings in ({"dataset": ",".join(files)}, {"dataset": files[0], "eval_dataset": ",".join(files[1:])}):
        sets = all_sets(**settings)
        for name, part in sets.items():
            assert len({p.id for p in part}) == len(part), name
    together = load_problem_sets(config(dataset=",".join(files)))
    every = [*together.train, *together.held_out]
    assert len({p.id for p in every}) == len(every)
    assert all("abc"[together.origin[p.id]] == p.statement[0] for p in together.train)


def test_too_few_problems_for_a_purpose_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [problem(f"p{i}") for i in range(9)])
    assert len(load_problem_sets(config(dataset=path)).held_out) == 1
    with pytest.raises(ConfigError, match="--eval-every: no problem is left"):
        load_problem_sets(config(dataset=path, eval_every=2))
    with pytest.raises(ConfigError, match="--eval-split tuning: no problem is left"):
        load_problem_sets(config(dataset=path, eval_split="tuning"))


@pytest.mark.parametrize("task", ["code", "countdown"])
def test_generated_problems_are_for_one_purpose_however_many_there_are(task: str) -> None:
    small, large = (all_sets(task=task, max_samples=20, eval_problems=count) for count in (10, 60))
    for name in ("tuning", "validation", "test"):
        assert large[name][:10] == small[name]
    ids = [{p.id for p in part} for part in large.values()]
    assert all(not a & b for i, a in enumerate(ids) for b in ids[:i])


def test_shuffle_seed_and_maximum(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [problem(f"p{i}") for i in range(40)])

    def chosen(seed: int | None) -> list[str]:
        return [p.id for p in load_problem_sets(config(dataset=path, max_samples=10, shuffle_seed=seed)).train]

    assert chosen(1) == chosen(1) != chosen(2) and len(chosen(None)) == 10
    held_out = [load_problem_sets(config(dataset=path, shuffle_seed=seed)).held_out for seed in (1, 2)]
    assert held_out[0] == held_out[1]


def test_mixing_by_weight(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [problem(f"p{i}", f"a {i}") for i in range(50)])
    b = write(tmp_path / "b.jsonl", [problem(f"p{i}", f"b {i}") for i in range(50)])
    settings = config(dataset=f"{a}, {b}", dataset_weights="3,1")
    sets = load_problem_sets(settings)
    assert len(sets.train) == 90 == len({p.id for p in sets.train}) and set(sets.origin.values()) == {0, 1}
    order = training_order(sets.train, settings, 800, sets.origin)
    drawn = Counter(sets.train[i].statement[0] for i in order)
    assert drawn["a"] / len(order) == pytest.approx(0.75, abs=0.05)
    first_of_b = [i for i in order if sets.train[i].statement[0] == "b"][:45]
    assert len(set(first_of_b)) == 45  # a whole pass before any problem comes again
    longer = training_order(sets.train, settings, 1200, sets.origin)
    assert longer[: len(order)] == order
    limited = load_problem_sets(replace(settings, max_samples=20))
    assert Counter(limited.origin.values()) == {0: 15, 1: 5}


def test_rewards_of_texts_get_the_columns_of_their_problem() -> None:
    problems = [
        Problem("a", "", answer="5", numbers=(2, 3)),
        Problem("b", "", answer="6", numbers=(2, 3)),
    ]
    text = "<think>Add.</think>\n<answer>2 + 3</answer>"
    verdicts = [COUNTDOWN.grade(None, text, problem).result() for problem in problems]
    scores = COUNTDOWN.scores(problems, [text, text], verdicts, config(task="countdown"))
    assert scores["equation_reward"] == [1.0, 0.0]


@pytest.mark.integration
def test_rows_of_a_run_name_their_problems() -> None:
    from pipeline.training.grpo import training_rows

    settings = config(task="countdown", steps=2, prompts_per_step=3)
    problems = load_problem_sets(replace(settings, max_samples=4, eval_problems=1)).train
    rows = training_rows(problems, settings)
    assert len(rows) == 6 and sorted(rows["problem"][:4]) == [0, 1, 2, 3]


# --- advantages


def test_scales_by_source_and_difficulty() -> None:
    scales = parse_scales("codeforces=0.5, codeforces/B=1.1")
    assert [
        advantage_scale(problem("a", source=source, difficulty=difficulty), scales)
        for source, difficulty in (("codeforces", "A 900"), ("codeforces", "B 1200"), ("taco", "B"), ("", ""))
    ] == [0.5, 1.1, 1.0, 1.0]


def test_a_scale_that_no_problem_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [problem("a", source="taco", difficulty="EASY"), problem("b", source="codeforces", difficulty="A 900")]
    check_scales(parse_scales("taco=2,taco/EASY=1,codeforces/900=3"), problems)
    assert not capsys.readouterr().out
    check_scales(parse_scales("codeforces/B=1.1"), problems)
    assert capsys.readouterr().out == "--advantage-scale: 'codeforces/B' does nothing, as codeforces has only 900, A\n"
    with pytest.raises(ConfigError, match="no training problem is of 'tako/EASY'; there is codeforces, taco"):
        check_scales(parse_scales("tako/EASY=2"), problems)


# --- whole commands

needs_starter = pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="the starter model has not been made")
SMALL = [
    "--model",
    "starter",
    "--steps",
    "2",
    "--prompts-per-step",
    "2",
    "--num-generations",
    "4",
    "--eval-problems",
    "4",
]
SMALL += ["--max-samples", "20", "--max-completion-length", "64"]


def run(script: str, *arguments: str) -> None:
    """Run a command in this process, which imports the libraries once for all of these tests."""
    done = CliRunner().invoke(importlib.import_module(script).main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.integration
@needs_starter
@pytest.mark.parametrize("name", ["countdown", "gsm8k", "code"])
def test_every_task_trains_and_logs_its_own_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--task", name, "--output-dir", "run"]
    if name == "gsm8k":
        rows = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(30)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options += ["--dataset", "rows.jsonl"]
    run("train", *SMALL, *options)
    metrics = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    names = [reward.name for reward in TASKS[name].rewards]
    assert [list(record["rewards"]) for record in metrics] == [names, names]
    weights = {reward.name: reward.weight for reward in TASKS[name].rewards}
    for record in metrics:
        total = sum(weights[n] * value for n, value in record["rewards"].items())
        assert record["reward"] == pytest.approx(total, abs=1e-5)
    rollout = read_json_lines(tmp_path / "run" / "rollouts" / "step-00001.jsonl")[0]
    assert list(rollout["rewards"]) == names and rollout["verdict"] in Status.__members__
    (first, _) = read_json_lines(tmp_path / "run" / "evaluations.jsonl")
    assert list(first["rewards"]) == names
    if name == "countdown":
        run("eval", "--checkpoint", "run", "--limit", "2")
        (policy,) = json.loads((tmp_path / "run" / "eval.json").read_text())["policies"]
        assert policy == "checkpoint"
