"""Evaluation's numbers and conclusions: what is counted, what is compared, and what is claimed."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adapters.config import AdapterError
from pipeline.config import ConfigError, RunConfig, Settings, resolved
from pipeline.config.evaluation import FROM_A_RUN, EvalSettings
from pipeline.evaluation.choose import check_base, policies, settings_for, usable
from pipeline.evaluation.compare import (
    compare_counts,
    compare_files,
    comparison_lines,
    power_lines,
    power_report,
    stored_counts,
)
from pipeline.evaluation.evaluate import Evaluation, evaluated_problems, pass_at
from pipeline.evaluation.run import adapter_settings, lines
from pipeline.policy.models import choose_model
from rewards.problem import Problem
from rewards.verdict import Status, Verdict

RIGHT = Verdict(Status.ACCEPTED, passed=2, total=2, compiled=True)
WRONG = Verdict(Status.WRONG_ANSWER, passed=1, total=2, compiled=True)
BROKEN = Verdict(Status.COMPILE_ERROR, total=2)
FAULT = Verdict(Status.NO_VERDICT, total=2)
CONFIG = resolved(Settings(), starter=True, gpu=False)


def evaluation(rows: list[list[Verdict]]) -> Evaluation:
    problems = [
        Problem(f"p{i}", "", source="even" if i % 2 == 0 else "odd", difficulty="A" if i < 2 else "")
        for i in range(len(rows))
    ]
    tokens = [[10 * (i + 1) for _ in row] for i, row in enumerate(rows)]
    return Evaluation(problems, rows, [["text"] * len(row) for row in rows], tokens, max_tokens=30, seconds=2.0)


def test_summary_counts_what_was_graded() -> None:
    result = evaluation([[RIGHT, RIGHT], [RIGHT, WRONG], [BROKEN, FAULT]])
    assert result.counts() == [(2, 2), (1, 2), (0, 1)]
    summary = result.summary([1, 2], CONFIG)
    assert summary["pass@1"]["pass_at_1"] == pytest.approx(0.5) and summary["pass@1"]["n"] == 5
    assert summary["pass@2"]["pass_at_2"] == 1.0  # of the two problems with two graded completions
    assert summary["verdicts"] == {"ACCEPTED": 3, "WRONG_ANSWER": 1, "COMPILE_ERROR": 1, "NO_VERDICT": 1}
    assert summary["compile_rate"] == pytest.approx(0.8) and summary["tests_passed"] == pytest.approx(3.5 / 5)
    assert summary["truncated"] == pytest.approx(2 / 6) and summary["mean_tokens"] == pytest.approx(20)
    by_source = {label: (value["pass_at_1"], value["problems"]) for label, value in summary["by_source"].items()}
    assert by_source == {"even": (0.5, 2), "odd": (0.5, 1)}
    assert set(summary["by_difficulty"]) == {"A", "unknown"}
    rows = list(result.rows(CONFIG))
    assert [row["verdict"] for row in rows[2:4]] == ["ACCEPTED", "WRONG_ANSWER"]
    assert rows[0]["reward"] == 1.0 and rows[3]["reward"] == pytest.approx(0.75) and rows[5]["reward"] is None
    assert result.summary([2, 3], CONFIG)["pass@3"] is None  # no problem has three


def counts(values: list[int], n: int = 1) -> dict[str, tuple[int, int]]:
    return {f"p{i}": (value, n) for i, value in enumerate(values)}


def test_a_gain_is_claimed_only_with_proof() -> None:
    base = counts([1] * 60 + [0] * 140)
    much = compare_counts(("base", "trained"), base, counts([1] * 60 + [1] * 30 + [0] * 110), [1])
    assert much["conclusion"].startswith("trained solves more problems than base: pass@1 0.300 against 0.450, +0.150")
    assert much["pass@1"]["p_value"] < 1e-6 and much["pass@1"]["method"] == "exact McNemar"
    little = compare_counts(("base", "trained"), base, counts([1] * 63 + [0] * 137), [1])
    assert little["conclusion"].startswith("No difference between base and trained is proven")
    assert "a gain below about 0.1" in little["conclusion"] and not little["pass@1"]["proven"]
    worse = compare_counts(("base", "trained"), base, counts([0] * 200), [1])
    assert "solves fewer problems" in worse["conclusion"]
    same = compare_counts(("a", "a"), base, base, [1])
    assert "agree on every problem" in same["conclusion"] and same["pass@1"]["p_value"] == 1


def test_only_problems_of_both_sides_are_compared() -> None:
    a, b = counts([1, 0, 1, 0], 2), counts([1, 1, 1, 1, 1], 2)
    result = compare_counts(("a", "b"), a, b, [1, 2])
    assert result["pass@1"]["problems"] == 4 and result["problems_of_one_side_only"] == 1
    assert result["pass@2"]["b"] == 1.0
    with pytest.raises(ConfigError, match="share no problem"):
        compare_counts(("a", "b"), a, {"other": (1, 1)}, [1])
    known = compare_counts(("a", "b"), a, b, [1, 3])
    assert known["pass@3"] is None and known["pass@1"] == result["pass@1"]
    assert known["conclusion"] == result["conclusion"]
    for clusters in ({}, {"p0": "x", "p1": "x"}):
        unknown = compare_counts(("a", "b"), a, b, [3], clusters)
        assert unknown["conclusion"] == (
            "Nothing is known of a difference between a and b: no problem has 3 graded completions on both sides."
        )
        assert comparison_lines(unknown) == [unknown["conclusion"]]


def test_clusters_are_kept_with_an_evaluation(tmp_path: Path) -> None:
    """Two of six families are solved: a claim about problems, but none about families."""
    base, better = [0] * 60, [1] * 20 + [0] * 40
    clusters = {f"p{i}": f"family {i // 10}" for i in range(60)}
    assert compare_counts(("a", "b"), counts(base), counts(better), [1])["pass@1"]["proven"]
    compared = compare_counts(("a", "b"), counts(base), counts(better), [1], clusters)
    assert not compared["pass@1"]["proven"] and "over 6 clusters" in compared["conclusion"]
    assert compared["detectable_gain"] > 0.5
    a, b = write_evaluation(tmp_path / "a.json", base), write_evaluation(tmp_path / "b.json", better)
    for path in (a, b):
        record = json.loads(path.read_text())
        record["per_problem"]["clusters"] = clusters
        path.write_text(json.dumps(record))
    assert compare_files(a, b, [1]) == compare_counts((f"checkpoint of {a}", f"checkpoint of {b}"), counts(base),
                                                      counts(better), [1], clusters)  # fmt: skip
    problems = [Problem(f"p{i}", "", source="s", cluster=f"family {i // 10}") for i in range(60)]
    verdicts = [[RIGHT if value else WRONG] for value in better]
    one = Evaluation(problems, verdicts, [["text"]] * 60, [[1]] * 60, max_tokens=30, seconds=2.0)
    summary = one.summary([1], CONFIG)
    assert summary["pass@1"]["low"] == 0 and summary["pass@1"]["high"] > 0.85  # 1/3 ± 2.57 · 0.21
    assert summary["by_source"]["s"]["high"] == summary["pass@1"]["high"]


def test_two_evaluations_of_one_policy_rarely_differ() -> None:
    """20 pairs of evaluations of 200 problems, 4 completions each: at most 2 false alarms at 5 %."""
    random = np.random.default_rng(5)
    rates = random.beta(0.6, 0.9, size=200)
    alarms = 0
    for _ in range(20):
        a, b = (counts(random.binomial(4, rates).tolist(), 4) for _ in range(2))
        alarms += compare_counts(("one", "same"), a, b, [1])["pass@1"]["proven"]
    assert alarms <= 2


def write_evaluation(path: Path, values: list[int], **changes) -> Path:
    record: dict = {"dataset": "starter", "temperature": 0.0, "policies": {"checkpoint": "run"}}
    counted = {"checkpoint": [[value, 1] for value in values]}
    record["per_problem"] = {"ids": [f"p{i}" for i in range(len(values))], "counts": counted}
    path.write_text(json.dumps(record | changes))
    return path


def test_stored_evaluations_are_compared_where_they_were_made_alike(tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a.json", [0] * 30)
    b = write_evaluation(tmp_path / "b.json", [1] * 20 + [0] * 10)
    assert compare_files(a, b, [1])["pass@1"]["proven"]
    warm = write_evaluation(tmp_path / "warm.json", [1] * 30, temperature=1.0)
    with pytest.raises(ConfigError, match="has temperature 0.0"):
        compare_files(a, warm, [1])
    with pytest.raises(ConfigError, match="no problem has 2 graded completions on both sides; lower --pass-at"):
        compare_files(a, b, [1, 2])
    for content in ("", "[]", "{}", '{"per_problem": {"counts": {}}}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ConfigError, match="not an evaluation"):
            stored_counts(tmp_path / "other.json")
    write_evaluation(tmp_path / "other.json", [3])  # of one completion
    with pytest.raises(ConfigError, match="not an evaluation"):
        stored_counts(tmp_path / "other.json")


def test_power_is_told_for_several_numbers_of_completions() -> None:
    text = power_lines(0.05, 0.5, None)
    needed = [int(line.split()[0].replace(",", "")) for line in text[1:]]
    assert needed == sorted(needed, reverse=True) and 1500 < needed[0] < 1700  # (1.96 + 0.84)² · 2 · 0.25 / 0.05²
    for gain, rate, known in ((0.6, 0.5, None), (0.05, 0.97, None), (0.3, 0.5, [(3, 4)] * 20)):
        with pytest.raises(ConfigError, match=f"^--power {gain}: .* a gain of at most 0"):
            power_lines(gain, rate, known)
    assert power_lines(0.1, 0.9, None)
    certain = power_lines(0.05, 0.5, [(4, 4)] * 50 + [(0, 4)] * 50 + [(2, 4)] * 10)
    assert int(certain[1].split()[0].replace(",", "")) < needed[0] / 4


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    asked = EvalSettings(pass_at="4,1")
    assert asked.ks == [1, 4] and asked.samples == 4 and EvalSettings(num_samples=8).samples == 8
    for wrong, match in (
        ({"pass_at": "1,4", "num_samples": 1}, "less than the 4"),
        ({"num_samples": 2, "greedy": True}, "one and the same"),
        ({"pass_at": "1,4", "temperature": 0.0}, "^--temperature 0: 4 completions .* one and the same"),
        ({"seed": -1}, "--seed must not be negative, not -1"),
        ({"seed": 2**32}, "--seed must be below 4294967296"),
        ({"greedy": True, "temperature": 0.5}, "--greedy and --temperature 0.5"),
        ({"pass_at": "0"}, "--pass-at must be at least 1"),
        ({"pass_at": "1,x"}, "--pass-at must be numbers"),
        ({"num_samples": 0}, "--num-samples must be greater than 0, not 0"),
        ({"limit": 0}, "--limit must be greater than 0, not 0"),
        ({"power": 0.0}, "--power must be greater than 0, not 0"),
        ({"power": 1.0}, "--power must be below 1, a gain such as 0.05, not 1"),
        ({"base_rate": 1.5}, "--base-rate must be at most 1, not 1.5"),
    ):
        with pytest.raises(ConfigError, match=match):
            EvalSettings(**wrong)  # type: ignore[arg-type]
    asked.check_samples(1.0)
    with pytest.raises(ConfigError, match="^--eval-temperature 0 of the run: 4 completions .* one and the same"):
        asked.check_samples(0.0)
    EvalSettings(pass_at="1").check_samples(0.0)
    assert policies([], True, False) == [("baseline", None)]
    assert policies([tmp_path], True, True) == [("baseline", None), ("checkpoint", tmp_path)]
    assert policies([tmp_path, tmp_path], False, True) == [("a", tmp_path), ("b", tmp_path)]
    for chosen, baseline in (([tmp_path], False), ([], True), ([tmp_path] * 3, False), ([tmp_path] * 2, True)):
        with pytest.raises(ConfigError, match="--compare needs"):
            policies(chosen, baseline, True)
    with pytest.raises(ConfigError, match="no such folder"):
        policies([tmp_path / "none"], False, False)
    with pytest.raises(ConfigError, match="--power 0.05: give one stored evaluation, not 2"):
        power_report(0.05, 0.3, [tmp_path, tmp_path])


def test_what_is_not_used_here_of_a_run_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an engine that an evaluation does without, and of a GPU: their options need not be known to it."""
    lowrank = Settings(dataset="x", vllm=True, quant="nf4", refresh="lowrank", engine_weights="nf4", kv_dtype="fp8")
    lowrank.save(tmp_path / "config.yaml")
    for gpu in (True, False):
        monkeypatch.setattr("pipeline.evaluation.choose.on_gpu", lambda gpu=gpu: gpu)
        without = resolved(settings_for(tmp_path, {"vllm": False}), starter=True, gpu=gpu)
        assert not without.vllm
        kept = resolved(settings_for(tmp_path, {}), starter=True, gpu=gpu)
        assert (kept.refresh, kept.engine_weights) == ("lowrank", "nf4") and kept.kv_dtype == ("fp8" if gpu else "auto")
        assert resolved(usable(lowrank, vllm=False), starter=True, gpu=gpu).rounding == "stochastic"
    Settings(dataset="x", dtype="bfloat16").save(tmp_path / "config.yaml")
    assert settings_for(tmp_path, {}).dtype == adapter_settings(CONFIG, tmp_path).dtype == "auto"
    Settings(dataset="x", dtype="float16").save(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="use a GPU for a run made with it"):
        resolved(settings_for(tmp_path, {}), starter=True, gpu=False)


def test_a_policy_is_loaded_in_the_type_that_it_was_trained_in(tmp_path: Path) -> None:
    Settings(dataset="x", dtype="float16").save(tmp_path / "config.yaml")
    assert adapter_settings(CONFIG, tmp_path).dtype == "float16"
    assert "dtype" not in FROM_A_RUN  # no other type loads its checkpoint


def test_a_checkpoint_of_other_weights_is_refused_before_any_are_loaded(tmp_path: Path) -> None:
    """After the first of two policies was evaluated it would be too late."""
    choice = choose_model("starter")
    for trained, now in ((None, "nf4"), ("nf4", "nf4"), ("none", "none")):
        check_base(tmp_path, Settings(model="starter", quant=trained), choice, now)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=f"^checkpoint {tmp_path} was trained with --quant nf4, not none"):
        check_base(tmp_path, Settings(model="starter", quant="nf4"), choice, "none")


def test_an_evaluation_of_no_problem_is_refused() -> None:
    class Tokenizer:
        def apply_chat_template(self, asked: list, **options: object) -> dict:
            return {"input_ids": [[0] * len(messages[-1]["content"]) for messages in asked]}

    problems = [Problem("a", "x" * 10), Problem("b", "x" * 1000)]
    kept, dropped = evaluated_problems(Tokenizer(), problems, 500)
    assert [problem.id for problem in kept] == ["a"] and dropped == 1
    with pytest.raises(ConfigError, match="^--max-prompt-length 5: the prompts of all 2 problems are longer"):
        evaluated_problems(Tokenizer(), problems, 5)


def test_people_read_every_number(tmp_path: Path) -> None:
    result = evaluation([[RIGHT, WRONG]] * 8)
    record = {"policies": {"checkpoint": "run"}, "checkpoint": result.summary([1, 2], CONFIG)}
    text = "\n".join(lines(record))
    parts = ("pass@1  0.500", "pass@2  1.000", "95 % interval", "wrong answer 50.0%", "source even", "difficulty A")
    for part in parts:
        assert part in text
    assert (pass_at([(1, 2)] * 8, 1) or {})["n"] == 16


def test_an_evaluation_without_verdicts_is_read_as_well() -> None:
    result = evaluation([[RIGHT, FAULT], [FAULT, FAULT]])
    record = {"policies": {"checkpoint": "run"}, "checkpoint": result.summary([1, 2], CONFIG)}
    text = "\n".join(lines(record))
    assert "pass@1  1.000" in text and "pass@2  unknown: no problem has 2 graded completions" in text
    assert evaluation([[FAULT]]).summary([1], CONFIG)["pass@1"] is None


def test_one_cluster_tells_nothing_of_others() -> None:
    """Neither of policies nor of a rate; of the label that names it, what its problems tell."""
    problems = [Problem(f"p{i}", "", source="s", difficulty="A" if i else "B", cluster="x") for i in range(60)]
    verdicts = [[RIGHT if i % 3 else WRONG] for i in range(60)]
    one = Evaluation(problems, verdicts, [["text"]] * 60, [[1]] * 60, max_tokens=30, seconds=2.0)
    summary = one.summary([1], CONFIG)
    assert summary["pass@1"]["high"] - summary["pass@1"]["low"] > 0.7
    label = summary["by_difficulty"]["A"]
    assert label["high"] - label["low"] < 0.3
    clusters = dict.fromkeys(counts([0] * 60), "x")
    compared = compare_counts(("a", "b"), counts([0] * 60), counts([1] * 60), [1], clusters)
    assert "one cluster, which tells nothing of others" in compared["conclusion"]
    assert compared["conclusion"].startswith("No difference")
    assert "any gain would go unnoticed" in compared["conclusion"]


def test_a_checkpoint_of_another_shape_frees_the_first_engine_before_it_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    from pipeline.evaluation import run as module
    from pipeline.policy.loading import Policy
    from pipeline.policy.models import ModelChoice

    class Engine:
        name, closed = "fake", False

        def refresh(self, v: object) -> None:
            assert not self.closed

        def close(self) -> None:
            self.closed = True

    class Model:
        def __init__(self, engine: Engine) -> None:
            self.tinylora, self.engine = SimpleNamespace(v=torch.zeros(1, 2)), engine  # they refer to each other
            engine.model = self  # type: ignore[attr-defined]

    alive: list[weakref.ref] = []

    def load(choice: ModelChoice, config: RunConfig) -> Policy:
        assert all(reference() is None for reference in alive)
        engine = Engine()
        model = Model(engine)
        alive.extend([weakref.ref(engine), weakref.ref(model)])
        return Policy(model, None, engine)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "load_policy", load)
    monkeypatch.setattr("adapters.load_checkpoint", lambda *_: None)
    runs = {"a": (8, 0, "principal"), "b": (8, 1, "principal"), "c": (4, 1, "principal"), "d": (4, 1, "normal")}
    for name, (u, seed, projections) in (runs | {"e": (4, 2, "normal")}).items():
        (tmp_path / name).mkdir()
        Settings(model="starter", u=u, seed=seed, projections=projections).save(tmp_path / name / "config.yaml")  # type: ignore[arg-type]
    loaded = None
    for name in "abcde":
        loaded = module.policy_of(tmp_path / name, ModelChoice("starter", "", ""), CONFIG, loaded)
        policy = loaded.policy  # as the caller's own name for it does
        assert policy.engine is not None
    assert len(alive) == 8  # a and b share an engine: no seed draws their projections again
