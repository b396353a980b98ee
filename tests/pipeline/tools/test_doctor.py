"""The doctor: a failing part is a line with advice and an exit code, never an exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Settings
from pipeline.policy.models import STARTER_FOLDER
from pipeline.tools import doctor
from rewards.errors import GraderError
from rewards.grader import needs
from rewards.grader.header import HeaderStore
from rewards.grader.pool import GraderPool
from tests.forked import Forks


def broken() -> tuple[str, str, str]:
    raise OSError("the disk\nis on fire")


def test_a_failing_check_is_one_line_and_its_dependants_are_skipped() -> None:
    it = doctor.Examination(Settings())
    it.add("first", broken, advice="call somebody")
    it.add("second", lambda: (doctor.OK, "fine", ""), needs=it.pool)
    it.add("third", lambda: (doctor.OK, "fine", ""))
    first, second, third = it.checks
    assert (first.status, first.found, first.advice) == ("FAILURE", "OSError: the disk is on fire", "call somebody")
    assert (second.status, third.status) == ("skipped", "ok")
    assert doctor.failed(it.checks) and not doctor.failed(it.checks[1:])


def test_pins_are_compared_with_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.txt").write_text("# a comment\nclick\ntorch==0.0.1  # old\nno-such-package-here==1\n")
    (tmp_path / "requirements-cpu.txt").write_text((tmp_path / "requirements.txt").read_text())
    assert doctor.pins(tmp_path / "requirements.txt") == {"torch": "0.0.1", "no-such-package-here": "1"}
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    status, found, advice = doctor._packages()
    assert status == "FAILURE" and "missing no-such-package-here" in found and "instead of 0.0.1" in found
    assert "make setup" in advice


def test_an_unreachable_hub_matters_only_for_a_model_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    status, found, _ = doctor._hub(Settings(model=str(tiny_model_folder)))
    assert status == "warning" and "does not answer" in found and "is local" in found
    assert "HF_ENDPOINT" in doctor._hub(Settings(model="owner/name"))[2]


def test_headers_that_cannot_be_made_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: HeaderStore, build: Path) -> Path:
        raise GraderError("the compiler cannot write PCH files")

    it = doctor.Examination(Settings())
    with GraderPool(1, quiet=True, header_bytes=0) as it.pool:
        status, found, advice = doctor._headers(it)
        assert status == "warning" and "verdicts stay right" in found and "--header-store" in advice
    monkeypatch.setattr(HeaderStore, "_compile", refuse)
    monkeypatch.setattr(HeaderStore, "_find", lambda self, stem: None)
    with GraderPool(1, quiet=True) as it.pool:
        status, found, _ = doctor._headers(it)
    assert status == "warning" and "cannot write PCH" in found and "verdicts stay right" in found


def test_tasks_that_cannot_be_graded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "missing_header", lambda header: "x is missing" if "boost" in header else None)
    left_out = "CPP/22, CPP/137 cannot be graded on this machine and are skipped"
    assert doctor._humaneval_x() == ("warning", left_out, "x is missing")
    monkeypatch.setattr(needs, "missing_header", lambda header: None)
    assert doctor._humaneval_x()[0] == "ok"


@pytest.mark.integration
def test_a_machine_without_a_compiler_fails_with_advice(forks: Forks, tmp_path: Path) -> None:
    options = ["--machine-only", "--ray-address", "nowhere:1"]
    done = forks.run("scripts/doctor.py", *options, cwd=tmp_path, env={"PATH": str(tmp_path)})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "FAILURE" in done.stdout and "apt-get install g++" in " ".join(done.stdout.split())
    assert any("cluster" in line and "skipped" in line for line in done.stdout.splitlines())


@pytest.mark.integration
@pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="the starter model has not been made (scripts/make_starter.py)")
def test_a_healthy_machine_passes_every_check(forks: Forks, tmp_path: Path) -> None:
    done = forks.run("scripts/doctor.py", "--model", "starter", "--no-vllm", cwd=tmp_path)
    assert "│ skipped" not in done.stdout and "refresh" in done.stdout  # tasks that need Boost may be, a check not
    assert (done.returncode == 1) == ("FAILURE" in done.stdout)
    for name in ("load", "generate", "refresh", "extract, compile"):
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"│ {name}"))
        assert "ok" in line, done.stdout
