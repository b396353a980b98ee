"""The generation benchmark: its cases, its arithmetic, its rows, and the real contenders on a tiny case."""

from __future__ import annotations

import pytest
import torch

from pipeline.bench import generation
from pipeline.bench.contenders import completion_lengths, make_prompts
from pipeline.bench.generation import (
    BAR_SHAPE,
    CPU_CASES,
    GPU_CASES,
    BenchmarkError,
    Case,
    check_contenders,
    make_rows,
    make_tasks,
    roofline,
    run_task,
)
from pipeline.policy.models import STARTER_FOLDER, ModelChoice

NOWHERE = ModelChoice("nowhere", "nowhere", "for a test")
SMALL, LARGE = Case(2, 2, 16, 8), Case(4, 2, 16, 8)


def canned(rates: dict[str, float], case: Case, **measured: object) -> dict:
    timings = {
        name: {case.name: {"rate": rate, "seconds": case.rows * case.new_tokens / rate, "tokens": 12}}
        for name, rate in rates.items()
    }
    return {"rates": timings, **measured}


def three_results(case: Case, ours: float, shape: str) -> dict[str, dict]:
    traffic = {"weight_bytes": 1000, "kv_bytes_per_token": 10, "bandwidth": 1e6}
    seconds = {"refresh_seconds": 0.002, "trl_sync_seconds": 0.08}
    return {
        "ours": canned({"ours": ours, "groups": 90.0}, case, shape=shape, **traffic, **seconds),
        "trl": canned({"trl": 20_000.0}, case, sync_seconds=0.09),
        "generate": canned({"generate": 1000.0}, case),
    }


def test_a_case_is_named_by_its_batch_and_lengths() -> None:
    assert GPU_CASES[0].name == "64x8, 256+256"
    assert GPU_CASES[0].rows == 512
    for cases in (GPU_CASES, CPU_CASES):
        assert len({case.name for case in cases}) == len(cases)


def test_the_roofline_is_the_time_to_read_weights_and_cache() -> None:
    # Two steps of three rows: 2 × 100 bytes of weights; 3 × 4 and then 3 × 5 tokens of 2 bytes. 254 bytes at 127 B/s
    # are 2 s for six tokens.
    assert roofline(Case(3, 1, 4, 2), weight_bytes=100, kv_bytes_per_token=2, bandwidth=127) == pytest.approx(3.0)


def test_prompts_are_distinct_ordinary_and_the_same_for_every_contender() -> None:
    vocabulary = [5, 6, 7, 8, 9, 10, 11]
    prompts = make_prompts(SMALL, vocabulary, 0)
    assert prompts == make_prompts(SMALL, vocabulary, 0)
    others = [make_prompts(SMALL, vocabulary, 1), make_prompts(LARGE, vocabulary, 0)]
    everything = [tuple(prompt) for some in (prompts, *others) for prompt in some]
    assert len(set(everything)) == len(everything) == 2 + 2 + 4
    assert {len(prompt) for prompt in everything} == {16}
    assert {token for prompt in everything for token in prompt} <= set(vocabulary)


def test_a_completion_ends_with_its_first_end_token() -> None:
    ids = torch.tensor([[7, 2, 0, 0], [7, 7, 7, 7], [3, 2, 7, 2], [7, 7, 7, 2]])
    assert completion_lengths(ids, [2, 3]).tolist() == [2, 4, 1, 4]


def test_the_slow_contender_has_only_the_main_and_the_smallest_case() -> None:
    cases = (LARGE, Case(8, 2, 16, 8), SMALL)
    ours, slow = make_tasks(NOWHERE, cases, ("ours", "generate"), None, 64)
    assert ours.cases == cases
    assert slow.cases == (LARGE, SMALL)
    assert slow.largest == Case(8, 2, 16, 8)
    assert slow.repeats == 1
    (mixed,) = make_tasks(NOWHERE, [Case(2, 3, 8, 9), Case(1, 2, 10, 7)], ("ours",), None, 64)
    assert mixed.largest == Case(2, 3, 10, 9)
    (alone,) = make_tasks(NOWHERE, [SMALL], ("generate",), None, 64)
    assert alone.cases == (SMALL,)


def test_the_main_case_on_a_gpu_has_bars() -> None:
    rows = {one.what: one for one in make_rows([SMALL], three_results(SMALL, 44_000.0, BAR_SHAPE), gpu=True)}
    absolute = rows["generate 2x2, 16+8: vLLM as we run it"]
    assert (absolute.bar, absolute.ok) == (">= 45000", False)
    against_trl = rows["generate 2x2, 16+8: ours against vLLM as TRL runs it"]
    assert (against_trl.ratio, against_trl.bar, against_trl.ok) == (pytest.approx(2.2), ">= 2", True)
    slow = next(one for what, one in rows.items() if "against Unsloth" in what)
    assert (slow.baseline, slow.bar, slow.ok) == (1000.0, ">= 20", True)
    bound = rows["generate 2x2, 16+8: the roofline"].value
    assert rows["generate 2x2, 16+8: ours"].value == pytest.approx(44_000 / bound)
    assert rows["generate 2x2, 16+8: tokens that ours produced"].value == pytest.approx(12 / 32)
    refresh = rows["refresh: ours against TRL's sync_weights on our engine"]
    assert (refresh.value, refresh.baseline, refresh.unit) == (2.0, 80.0, "ms")


def test_a_cpu_another_shape_and_other_cases_have_no_bars() -> None:
    results = three_results(SMALL, 44_000.0, "7b")
    assert not any(one.bar for one in make_rows([SMALL], results, gpu=False))
    barred = [one.what for one in make_rows([SMALL], results, gpu=True) if one.bar]
    assert len(barred) == 2 and all("against" in what for what in barred)
    both = three_results(SMALL, 44_000.0, BAR_SHAPE)
    both["ours"]["rates"]["ours"][LARGE.name] = both["ours"]["rates"]["ours"][SMALL.name]
    assert all(SMALL.name in one.what for one in make_rows([SMALL, LARGE], both, gpu=True) if one.bar)


def test_contenders_stand_alone() -> None:
    results = three_results(SMALL, 44_000.0, BAR_SHAPE)
    alone = make_rows([SMALL], {"trl": results["trl"]}, gpu=True)
    assert [one.value for one in alone] == [20_000.0, 90.0]


def test_a_contender_that_fails_is_named_with_the_end_of_its_output() -> None:
    (task,) = make_tasks(NOWHERE, [SMALL], ["nobody"], None, 64)
    with pytest.raises(BenchmarkError) as error:
        run_task(task)
    first, *tail = str(error.value).splitlines()
    assert first == "the contender 'nobody' failed with exit status 1; it printed last:"
    assert tail[-1] == "KeyError: 'nobody'"


def test_a_contender_that_hangs_is_stopped() -> None:
    (task,) = make_tasks(NOWHERE, [SMALL], ["nobody"], None, 64)
    with pytest.raises(BenchmarkError, match="did not end within 0.001 s and was stopped"):
        run_task(task, timeout=0.001)


def test_contenders_are_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchmarkError, match="no contender 'nobody'; choose from ours, lowrank, trl, generate"):
        check_contenders(["nobody"])
    monkeypatch.setattr(generation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match="'trl' needs vLLM, which is not installed"):
        check_contenders(["generate", "trl"])


@pytest.mark.integration
@pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="the starter has not been made (scripts/make_starter.py)")
def test_every_contender_generates_and_is_timed() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    choice = ModelChoice("starter", str(STARTER_FOLDER), "for a test")
    results = {}
    for task in make_tasks(choice, [SMALL], (*generation.DEFAULT, "nf4"), None, 3):
        results[task.contender] = run_task(task, timeout=600)
    rates = {name: timing for result in results.values() for name, timing in result["rates"].items()}
    assert set(rates) == {"ours", "groups", "lowrank", "nf4", "trl", "generate"}
    for timing in rates.values():
        assert 0 < timing[SMALL.name]["tokens"] <= SMALL.rows * SMALL.new_tokens
        assert timing[SMALL.name]["rate"] > 0
    shape = results["ours"]
    assert shape["weight_bytes"] == 4 * 5 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768) + 4 * 2048 * 256
    assert shape["kv_bytes_per_token"] == 4 * 2 * 5 * 2 * 64
    assert shape["refresh_seconds"] > 0 and shape["trl_sync_seconds"] > 0 and results["trl"]["sync_seconds"] > 0
    assert all(one.value > 0 for one in make_rows([SMALL], results, gpu=False))
