"""Every program of `hostile/` gets the verdict of its first line, and nothing of it is left behind.

An attack that succeeds prints the right answer, so ACCEPTED anywhere would be a breach. `HOSTILE_ROUNDS=20` repeats the
corpus.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rewards.errors import GraderError
from rewards.grader.pool import GraderPool
from rewards.grader.scratch import scratch_root
from rewards.problem import Problem, Test
from rewards.verdict import Verdict

CORPUS = sorted(Path(__file__).with_name("hostile").glob("*.cpp"))
ROOT = Path(__file__).resolve().parents[3]
ROUNDS = int(os.environ.get("HOSTILE_ROUNDS", "1"))
PROBLEM = Problem("hostile", "", (Test("20 22\n", "42\n"),) * 2, time_limit=0.2, memory_limit=64_000_000)


def expected(path: Path) -> list[str]:
    first = path.read_text().splitlines()[0]
    assert first.startswith("// expect: "), path
    return first.removeprefix("// expect: ").split(" or ")


def grade_corpus(pool: GraderPool) -> dict[str, tuple[list[str], Verdict]]:
    futures = [(path, pool.submit(path.read_text(), PROBLEM)) for path in CORPUS]
    return {path.stem: (expected(path), future.result()) for path, future in futures}


def wrong_verdicts(results: dict[str, tuple[list[str], Verdict]]) -> dict[str, str]:
    return {
        name: f"{verdict.status}, not {' or '.join(wanted)}: {verdict.diagnostics[:200]}"
        for name, (wanted, verdict) in results.items()
        if verdict.status not in wanted
    }


def own_files(pool: GraderPool) -> list[Path]:
    """Everything that the pool's graders keep on tmpfs."""
    folders = [folder for pid in pool.process_ids for folder in scratch_root().glob(f"grader-{pid}-*")]
    assert len(folders) == len(pool.process_ids)
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def _children(process: psutil.Process) -> set[int]:
    return {child.pid for child in process.children(recursive=True)}


def test_corpus_is_large_enough() -> None:
    bombs = [path for path in CORPUS if path.stem.startswith("bomb_")]
    assert len(bombs) >= 12 and len(CORPUS) - len(bombs) >= 20


@pytest.mark.integration
def test_corpus() -> None:
    me = psutil.Process()
    with GraderPool(2, quiet=True, cache_size=0, compile_cpu_s=1.0, idle_s=0.3, tier="A") as pool:
        before = _children(me)  # the idle graders, and whatever earlier tests of this process keep running
        for _ in range(ROUNDS):
            results = grade_corpus(pool)
            assert not wrong_verdicts(results)
            for name, (_, verdict) in results.items():
                assert "root:" not in verdict.diagnostics, f"{name} shows a file of the host"
                assert len(verdict.diagnostics) <= 4096 + 100, name
                assert all(test.cpu_s < 2.0 for test in verdict.tests), name
            deadline = time.monotonic() + 5  # the kernel takes a namespace down some time after its last process
            while (left := _children(me) - before) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not left, f"processes left behind: {left}"
            kept = own_files(pool)  # the inputs of the problem, for the next program
            assert {path.suffix for path in kept} <= {".in"} and sum(path.stat().st_size for path in kept) < 10_000
        assert pool.counts["no_verdict"] == 0


@pytest.mark.integration
def test_corpus_without_bubblewrap() -> None:
    """Tier B keeps the same promises."""
    try:
        pool = GraderPool(2, quiet=True, cache_size=0, compile_cpu_s=1.0, idle_s=0.3, tier="B")
    except GraderError as error:
        pytest.skip(str(error))
    with pool:
        assert not wrong_verdicts(grade_corpus(pool))


NOT_ROOT = """
import sys
from pathlib import Path
from rewards.errors import GraderError
from rewards.grader.pool import GraderPool
from rewards.problem import Problem, Test
problem = Problem("hostile", "", (Test("20 22\\n", "42\\n"),) * 2)
try:
    pool = GraderPool(1, quiet=True, cache_size=0)
except GraderError as error:
    raise SystemExit(f"no sandbox: {error}")
with pool:
    for path in sys.argv[1:]:
        print(pool.submit(Path(path).read_text(), problem).result().status)
"""
RIGHT = '#include <cstdio>\nint main() { int a, b; scanf("%d%d", &a, &b); printf("%d", a + b); }\n'


def test_a_grader_that_is_not_root_can_still_read_its_files() -> None:
    """Root may read a file whatever its rights are, so these programs harm only the graders of other users."""
    if os.getuid():
        pytest.skip("starts a grader of another user, as only root can")
    if not (python := shutil.which("python3", path="/usr/bin:/bin")):
        pytest.skip("there is no Python that another user can run")
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": ROOT, "check": False}
    nobody |= {"capture_output": True, "text": True}
    tried = subprocess.run([python, "-c", "import rewards.grader.pool"], **nobody)
    if tried.returncode:
        pytest.skip(f"another user cannot run the grader: {tried.stderr[-200:]}")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        (right := Path(folder, "right.cpp")).write_text(RIGHT)
        attacks = []
        for path in CORPUS:
            if path.stem.startswith("take_rights_of_"):
                attacks += [shutil.copy(path, folder), str(right)]
        cache = Path(folder, "cache")
        cache.mkdir()
        os.chown(cache, 65534, 65534)
        environment = {"PATH": "/usr/bin:/bin", "TINYLORA_CACHE": str(cache)}
        done = subprocess.run([python, "-c", NOT_ROOT, *attacks], env=environment, **nobody)
    if done.stderr.startswith("no sandbox: "):
        pytest.skip(done.stderr)
    assert done.stdout.split() == ["RUNTIME_ERROR", "ACCEPTED"] * (len(attacks) // 2), done.stderr
