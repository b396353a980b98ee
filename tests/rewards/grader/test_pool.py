"""The pool around the judge: duplicates, cache, back-pressure, faults, shutdown, and what its processes import."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from rewards.errors import GraderError
from rewards.grader.judge import JudgeConfig
from rewards.grader.pool import GraderPool
from rewards.grader.process import GraderProcess
from rewards.grader.runner import build_runner
from rewards.grader.sandbox import Sandbox, choose_sandbox
from rewards.grader.scratch import scratch_root
from rewards.problem import Problem, Test
from rewards.verdict import Status

ROOT = Path(__file__).resolve().parents[3]
ONE = Problem("one", "", (Test("", "1\n"),), time_limit=0.3)
SPIN = "int main() { for (volatile int i = 0;; i = i + 1); }"


def printing(number: int) -> str:
    return f'#include <cstdio>\nint main() {{ puts("1"); return 0 * {number}; }}\n'


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def graders(pool: GraderPool) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pool.process_ids]


def test_duplicates_in_flight_share_one_future_and_later_ones_the_cache(pool: GraderPool) -> None:
    before = dict(pool.counts)
    source = printing(101)
    futures = [pool.submit(source, ONE) for _ in range(8)]
    assert len({id(future) for future in futures}) == 1
    first = futures[0].result()
    again = pool.submit(source, Problem("one", "", (Test("", "1\n"),), time_limit=0.3)).result()  # equal, not the same
    assert first.accepted and not first.cached
    assert again.accepted and again.cached
    assert pool.counts["graded"] == before.get("graded", 0) + 1
    other = pool.submit(source, Problem("two", "", (Test("", "2\n"),))).result()
    assert other.status is Status.WRONG_ANSWER and not other.cached


def test_the_cache_is_bounded() -> None:
    with GraderPool(1, cache_size=2, quiet=True) as pool:
        for number in (1, 2, 3, 1):
            assert not pool.submit(printing(number), ONE).result().cached
        assert pool.submit(printing(1), ONE).result().cached


def test_submit_waits_when_too_much_is_pending() -> None:
    quick = Problem("quick", "", (Test("", ""),), time_limit=0.05)
    with GraderPool(1, max_pending=2, quiet=True) as pool:
        done = []

        def submit_all() -> None:
            for number in range(6):
                pool.submit(f"// {number}\n{SPIN}", quick)
                done.append(number)

        thread = threading.Thread(target=submit_all)
        thread.start()
        time.sleep(0.1)
        assert len(done) < 6
        thread.join()
        assert len(done) == 6


@pytest.mark.integration
def test_a_killed_grader_is_replaced_and_its_program_graded_again() -> None:
    with GraderPool(1, quiet=True) as pool:
        (victim,) = graders(pool)
        future = pool.submit(SPIN, Problem("slow", "", (Test("", ""),), time_limit=1.0))
        assert eventually(lambda: victim.children())
        victim.kill()
        assert future.result(30).status is Status.TIME_LIMIT
        (replacement,) = graders(pool)
        assert replacement.pid != victim.pid
        assert pool.counts["retried"] == 1
        assert pool.submit(printing(1), ONE).result(30).accepted
        assert not list(scratch_root().glob(f"grader-{victim.pid}-*"))  # the dead one's files are gone


def test_a_grader_whose_folder_was_removed_is_replaced() -> None:
    with GraderPool(1, quiet=True) as pool:
        (lost,) = pool.process_ids
        (folder,) = scratch_root().glob(f"grader-{lost}-*")
        shutil.rmtree(folder)
        assert pool.submit(printing(1), ONE).result(30).accepted
        assert pool.process_ids != [lost]


def test_a_second_fault_gives_no_verdict() -> None:
    with GraderPool(1, quiet=True) as pool:
        future = pool.submit(SPIN, Problem("slow", "", (Test("", ""),), time_limit=5.0))
        for _ in range(2):
            assert eventually(lambda: any(child.children() for child in graders(pool)))
            for grader in graders(pool):
                grader.kill()
            time.sleep(0.2)
        verdict = future.result(30)
        assert verdict.status is Status.NO_VERDICT and "died" in verdict.diagnostics
        assert pool.submit(printing(1), ONE).result(30).accepted


def test_closing_leaves_nothing() -> None:
    pool = GraderPool(2, quiet=True)
    pids = pool.process_ids
    with pytest.raises(KeyboardInterrupt), pool:
        futures = [pool.submit(f"// {i}\n{SPIN}", ONE) for i in range(20)]
        began = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - began < 5  # type: ignore[possibly-unbound]
    assert all(future.done() for future in futures)  # type: ignore[possibly-unbound]
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids)
    assert not [path for pid in pids for path in scratch_root().glob(f"grader-{pid}-*")]
    with pytest.raises(GraderError, match="closed"):
        pool.submit(SPIN, ONE)


PARENT = """
    import sys, time
    sys.path.insert(0, {root!r})
    from rewards.grader.pool import GraderPool
    from rewards.problem import Problem, Test
    pool = GraderPool(2, quiet=True)
    problem = Problem("p", "", (Test("", ""),), time_limit=20.0)
    for i in range(10):
        pool.submit("// %d\\nint main() {{ for (volatile int i = 0;; i = i + 1); }}" % i, problem)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.integration
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_orphans_when_the_trainer_dies(how: signal.Signals) -> None:
    script = textwrap.dedent(PARENT).format(root=str(ROOT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born ignoring it
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    signal.signal(signal.SIGINT, before)
    assert parent.stdout and parent.stdout.readline() == "ready\n"
    family = psutil.Process(parent.pid)
    assert eventually(lambda: len(family.children(recursive=True)) >= 4)  # two graders, each with a sandbox
    children = family.children(recursive=True)
    pids = [child.pid for child in children]
    parent.send_signal(how)
    parent.wait(20)
    parent.stdout.close()
    gone = eventually(lambda: not any(child.is_running() for child in children))
    assert gone, [child for child in children if child.is_running()]
    assert eventually(lambda: not [path for pid in pids for path in scratch_root().glob(f"grader-{pid}-*")])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_grader_that_ends_leaves_no_sandbox_that_is_being_set_up(how: signal.Signals, tmp_path: Path) -> None:
    """Bubblewrap does not end with its parent before it is done with that: here a shell stands in for it."""
    unfinished = tmp_path / "bwrap"
    unfinished.write_text("#!/bin/sh\nexec sleep 60\n")
    unfinished.chmod(0o700)
    grader = GraderProcess(JudgeConfig(Sandbox("A", "runner", str(unfinished)), "g++", "c++20"))

    def children() -> list[psutil.Process]:
        return psutil.Process(grader.process_id).children() if grader.process_id else []

    with ThreadPoolExecutor(1, "grader-") as threads:
        future = threads.submit(grader.grade, SPIN, ONE)
        assert eventually(children)
        (sandbox,) = children()
        os.kill(grader.process_id or 0, how)
        assert future.result(20) == "the grader process died"
        threads.submit(grader.stop).result(20)
    assert eventually(lambda: not sandbox.is_running(), 2)


def test_the_trainers_main_module_is_not_imported_again(tmp_path: Path) -> None:
    """A script without an `if __name__ == "__main__"` must not start a pool in every grader."""
    script = tmp_path / "trainer.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); print('imported')\n"
        "from rewards.grader.pool import GraderPool\nfrom rewards.problem import Problem, Test\n"
        "problem = Problem('p', '', (Test('', '1'),))\n"
        "with GraderPool(2, quiet=True) as pool:\n"
        "    print(pool.submit('#include <cstdio>\\nint main() { puts(\"1\"); }', problem).result().status)\n"
    )
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.split() == ["imported", "ACCEPTED"]


def test_graders_import_little_and_know_no_secret() -> None:
    imports = "import rewards.grader.worker, rewards.code; print(*sys.modules)"
    modules = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {imports}"
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", modules], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "transformers", "datasets", "multiprocessing.pool"} & set(loaded)
    os.environ["GRADER_TEST_SECRET"] = "1"
    try:
        with GraderPool(1, quiet=True) as pool:
            (grader,) = graders(pool)
            assert "GRADER_TEST_SECRET" not in grader.environ()
            assert grader.nice() >= 5
    finally:
        del os.environ["GRADER_TEST_SECRET"]


def test_missing_compiler_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GraderError, match="g\\+\\+ is missing.*apt-get install g\\+\\+"):
        GraderPool(1)


def test_tier_c_only_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GraderError, match="--unsafe-grader"):
        choose_sandbox(tier="C")
    sandbox, _ = choose_sandbox(tier="C", unsafe=True)
    assert sandbox.tier == "C"
    assert "read:/etc/passwd" in sandbox.probe()  # which is why it is refused

    def see_a_breach(self: Sandbox) -> list[str]:
        return ["read:/etc/passwd"]

    monkeypatch.setattr(Sandbox, "probe", see_a_breach)
    with pytest.raises(GraderError, match="A: a program could still do read:/etc/passwd"):
        choose_sandbox()
    assert choose_sandbox(unsafe=True)[0].tier == "C"


def test_without_bubblewrap_the_next_tier_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *a, **k: None if name == "bwrap" else real(name, *a, **k))
    try:
        sandbox, reason = choose_sandbox()
    except GraderError as error:
        assert "bwrap is not installed" in str(error)  # no landlock in this kernel either
    else:
        assert sandbox.tier == "B" and "bwrap is not installed" in reason


@pytest.mark.parametrize("tier", ["A", "B"])
def test_the_probe_finds_nothing(tier: str) -> None:
    try:
        sandbox, _ = choose_sandbox(tier=tier)
    except GraderError as error:
        pytest.skip(str(error))
    assert sandbox.probe() == []


def test_description(pool: GraderPool) -> None:
    about = pool.describe()
    assert about["tier"] in "AB" and about["workers"] == 2 and about["header"] == "of repeated prologues"
    assert about["isolation"] in pool.summary() and "\n" not in pool.summary()


def test_bad_worker_count() -> None:
    with pytest.raises(GraderError, match="at least 1"):
        GraderPool(0)


def test_the_runner_is_built_once() -> None:
    runner = build_runner()
    before = runner.stat().st_mtime_ns
    assert build_runner() == runner and runner.stat().st_mtime_ns == before


def test_a_damaged_runner_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLORA_CACHE", str(tmp_path))
    runner = build_runner()
    runner.write_bytes(b"")
    assert build_runner() == runner and runner.stat().st_size > 10_000
    runner.unlink()
    (tmp_path / "gcc").write_text('#!/bin/sh\nfor last; do :; done; cp "$last" "$4"\n')  # as where nothing may run
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(GraderError, match="cannot be started: set TINYLORA_CACHE"):
        build_runner()


def test_the_longest_problem_can_be_waited_for(pool: GraderPool) -> None:
    problem = Problem("long", "", (Test("", ""),) * 1000, time_limit=3600)
    assert 1e6 < 1000 * GraderProcess(pool.config).patience(problem) < 2**31  # milliseconds of poll()


def test_a_test_that_is_no_text_costs_no_grader(pool: GraderPool) -> None:
    before = pool.process_ids
    verdict = pool.submit("int main(){}", Problem("odd", "", (Test("\ud800", ""),))).result()
    assert verdict.status is Status.NO_VERDICT and "surrogates" in verdict.diagnostics
    assert pool.process_ids == before
