"""The grader's verdict is that of the plain compiler: generated programs, and what a real model wrote.

`DIFFERENTIAL_CASES=3000 pytest tests/rewards/grader/test_differential.py` runs many more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards.errors import GraderError
from rewards.grader import header
from rewards.grader.harness import grade
from rewards.grader.pool import GraderPool
from rewards.problem import Checker, Problem, Test
from rewards.verdict import Status, Verdict
from tests.rewards.grader.plain import Outcome, error_kind, outcome
from tests.rewards.grader.programs import beginnings, bodies, c_programs, program

CASES = int(os.environ.get("DIFFERENTIAL_CASES", "120"))
BODIES = 4  # for each beginning
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def rounds(cases: int) -> settings:
    """So many examples; the same ones in every run, unless a number of cases was asked for."""
    return settings(
        max_examples=max(1, cases),
        deadline=None,
        derandomize="DIFFERENTIAL_CASES" not in os.environ,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.fixture(scope="module", params=["A", "B", "C"])
def any_tier(request: pytest.FixtureRequest) -> Iterator[GraderPool]:
    try:
        pool = GraderPool(2, quiet=True, tier=request.param, unsafe=request.param == "C")
    except GraderError as error:
        pytest.skip(str(error))
    with pool:
        yield pool


def agrees(verdict: Verdict, reference: Outcome) -> bool:
    """Whether a verdict on the reference's output is what the reference says of the program."""
    if reference.kind in ("compile", "link"):
        return verdict.status is Status.COMPILE_ERROR and error_kind(verdict.diagnostics) == reference.kind
    if reference.kind == "crash":
        return verdict.status in (Status.RUNTIME_ERROR, Status.TIME_LIMIT)
    return verdict.accepted


def compare(pool: GraderPool, sources: list[str], compiler: str = "g++", language: str = "cpp") -> list[Verdict]:
    """Judge each program both ways, with the precompiled headers that it can have."""
    with ThreadPoolExecutor(2) as threads:
        references = list(threads.map(lambda source: outcome(source, compiler), sources))
    if pool.headers is not None:
        for source in sources:
            pool.headers.shortcuts(source)  # counts the prologue, as grading it would
        pool.headers.wait()
    verdicts = []
    for number, (source, reference) in enumerate(zip(sources, references, strict=True)):
        tests = (Test("", reference.output),)
        problem = Problem(f"differential-{number}", "", tests, checker=Checker("exact"), language=language)
        verdict = pool.submit(source, problem).result()
        assert agrees(verdict, reference), f"{source!r}\nplain: {reference}\ngrader: {verdict}"
        verdicts.append(verdict)
    return verdicts


@pytest.mark.integration
def test_generated_programs(any_tier: GraderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "_SIGHTINGS", 1)
    monkeypatch.setattr(header, "_SIGHTINGS_WITH_PREFIX", 1)
    share = {"A": 0.6, "B": 0.3, "C": 0.1}[any_tier.config.sandbox.tier]
    used = 0

    @rounds(round(share * CASES / BODIES))
    @given(
        lines=beginnings,
        texts=st.lists(bodies, min_size=BODIES, max_size=BODIES, unique=True),
        newline=st.sampled_from(["\n", "\n", "\n", "\r\n"]),
        mark=st.sampled_from(["", "", "", "\ufeff"]),
    )
    def check(lines: list[str], texts: list[str], newline: str, mark: str) -> None:
        nonlocal used
        verdicts = compare(any_tier, [program(lines, text, newline, mark) for text in texts])
        used += sum(verdict.header == "used" for verdict in verdicts)

    check()
    assert used > share * CASES / 8  # else this test would not have looked at precompiled headers


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("clang++") is None, reason="clang++ is not installed here")
def test_generated_programs_with_clang() -> None:
    with GraderPool(2, compiler="clang++", quiet=True) as pool:

        @rounds(CASES // 12)
        @given(lines=beginnings, text=bodies)
        def check(lines: list[str], text: str) -> None:
            compare(pool, [program(lines, text)], "clang++")

        check()


@pytest.mark.integration
def test_generated_programs_in_c(pool: GraderPool) -> None:
    @rounds(CASES // 6)
    @given(source=c_programs)
    def check(source: str) -> None:
        compare(pool, [source], "gcc", "c")

    check()


@pytest.mark.integration
@pytest.mark.skipif(not (SHARED / "programs").is_dir(), reason="the programs of a real model are not here")
def test_programs_of_a_real_model() -> None:
    """As MBXP's own harness judges them: the test behind the program, compiled and run by plain g++."""
    tasks = {task["task_id"]: task for task in map(json.loads, (SHARED / "mbxp/dev.jsonl").open(encoding="utf-8"))}
    rows = [json.loads(line) for line in (SHARED / "programs/completions.jsonl").open(encoding="utf-8")]
    rows = rows[:: max(1, len(rows) // (CASES // 4))]
    found = []
    for row in rows:
        fence = re.search(r"```(?:cpp|c\+\+)\n(.*?)```", row["completion"], re.DOTALL)
        if fence and "main(" not in fence[1] and "freopen" not in fence[1]:
            found.append((tasks[row["task_id"]], fence[1]))
    start = "#include <bits/stdc++.h>\nusing namespace std;\n"

    def reference(found: tuple[dict[str, str], str]) -> Outcome:
        return outcome(start + found[1] + found[0]["test"])

    with ThreadPoolExecutor(2) as threads:
        references = list(threads.map(reference, found))
    with GraderPool(2, quiet=True) as pool:
        futures = []
        for task, source in found:
            tests = (Test(task["test"], ""),)
            problem = Problem(task["task_id"], "", tests, preamble=task["prompt"], tests_are_code=True)
            futures.append(grade(pool, source, problem))
        for future, (_, source), expected in zip(futures, found, references, strict=True):
            verdict = future.result()
            assert agrees(verdict, expected), f"{source}\nplain: {expected}\ngrader: {verdict}"
    assert len(found) > len(rows) / 2
