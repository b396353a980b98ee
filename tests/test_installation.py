"""What `pip install` gives: a command for every script, and a wheel that holds all that is read when they run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUN = "import sys; sys.argv = sys.argv[1:]; from tinylora_coder import run_command; run_command()"


def run(place: Path, cwd: Path, *command: str) -> str:
    """What an installed command prints where `place` is on Python's path and the repository is not."""
    environment = os.environ | {"PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_script_has_a_command() -> None:
    scripts = [path for path in (ROOT / "scripts").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    commands = PROJECT["project"]["scripts"]
    assert set(commands) == {"tinylora-" + path.stem.replace("_", "-") for path in scripts}
    for target in commands.values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function))


def test_commands_run_in_another_folder_under_their_own_name(tmp_path: Path) -> None:
    assert run(ROOT, tmp_path, "tinylora-train", "--help").startswith("Usage: tinylora-train ")
    assert run(ROOT, tmp_path, "tinylora-make-shape", "--help").startswith("Usage: tinylora-make-shape ")


def test_the_dependencies_are_those_of_a_machine_with_a_gpu() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").partition("# checks")[0].splitlines()
    assert PROJECT["project"]["dependencies"] == [line for line in lines if re.match(r"\w", line)]


def test_a_wheel_holds_everything_and_grades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = pytest.importorskip("hatchling.build", reason="hatchling is not installed; run make setup")
    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path)))
    packages = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    files = {path for folder in [*packages, ROOT / "scripts"] for path in folder.rglob("*") if path.is_file()}
    files |= {ROOT / "requirements.txt", ROOT / "requirements-cpu.txt"}
    names = [str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts]
    expected = {name if name.startswith("tinylora_coder/") else f"tinylora_coder/{name}" for name in names}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected

    wheel.extractall(tmp_path / "site")
    (tmp_path / "twice.cpp").write_text("#include <iostream>\nint main() { int a; std::cin >> a; std::cout << 2 * a; }")
    (tmp_path / "1.in").write_text("4\n")
    (tmp_path / "1.ans").write_text("8\n")
    printed = run(tmp_path / "site", tmp_path, "tinylora-grade", "--tests", ".", "twice.cpp", "--unsafe-grader")
    assert "twice.cpp: ACCEPTED 1/1" in printed
