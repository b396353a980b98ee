"""HumanEval-X and MBXP are judged as the benchmarks' own harnesses judge the same completions with plain g++.

Both put a completion behind the prompt and the test behind both. HumanEval-X (CodeGeeX, `execution.py`) begins with
nine includes, each if the prompt lacks it, and compiles as C++11; MBXP (mxeval, `execution.py`) takes the compiler's
defaults.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.sources import SOURCES, convert_record
from data.sources.humaneval_x import INCLUDES
from rewards.grader.harness import grade
from rewards.grader.pool import GraderPool

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not (SHARED / "mbxp").is_dir(), reason="the shared test data are not here"),
]


def passes(program: str, *flags: str) -> bool:
    """Whether plain g++ makes a program of it that ends with exit code 0 within the 3 s of the harnesses."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test.cpp").write_text(program)
        if subprocess.run(["g++", *flags, "test.cpp"], cwd=folder, capture_output=True, check=False).returncode:
            return False
        try:
            return not subprocess.run(["./a.out"], cwd=folder, capture_output=True, check=False, timeout=3).returncode
        except subprocess.TimeoutExpired:
            return False


def variants(body: str) -> list[str]:
    """Right and wrong completions made of a right one."""
    wrong = [body.replace("return ", "return !", 1), body.replace(";", "", 1)]
    return [body, *wrong, f"    int unused = 0;\n{body}", f"{body}\n// the end\n"]


def humaneval_x(record: dict[str, str], completion: str) -> bool:
    front = "".join(f"{line}\n" for line in INCLUDES.split() if line not in record["prompt"])
    return passes(f"{front}\n{record['prompt']}{completion}\n{record['test']}", "-std=c++11")


def mbxp(record: dict[str, str], completion: str) -> bool:
    return passes(record["prompt"] + completion + record["test"])


@pytest.mark.parametrize(
    ("name", "file", "harness"),
    [("humaneval_x", "humaneval_x/sample.jsonl", humaneval_x), ("mbxp", "mbxp/dev.jsonl", mbxp)],
)
def test_fifty_completions_of_each_benchmark(name: str, file: str, harness) -> None:
    lines = (SHARED / file).read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record.get("canonical_solution")][:10]
    asked = [(record, text) for record in records for text in variants(record["canonical_solution"])]
    with ThreadPoolExecutor(2) as threads:
        expected = list(threads.map(lambda one: harness(*one), asked))
    with GraderPool(2, quiet=True) as pool:
        futures = [grade(pool, text, convert_record(SOURCES[name], record).problem) for record, text in asked]
        found = [future.result().accepted for future in futures]
    assert found == expected
    assert 20 <= sum(expected) <= 40 and len(asked) == 50
