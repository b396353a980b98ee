"""Problems whose code needs more than the compiler brings."""

from __future__ import annotations

import subprocess

import pytest

from rewards.grader import needs
from rewards.grader.harness import grade
from rewards.grader.needs import libraries_of, missing_header, missing_need
from rewards.grader.pool import GraderPool
from rewards.problem import Problem, ProblemError, Test, problem_from_record

MD5 = Problem(
    "md5",
    "",
    (Test('int main() { unsigned char d[16]; MD5((const unsigned char *)"a", 1, d); return d[0] != 0x0c; }', ""),),
    preamble="#include <string>\n#include <openssl/md5.h>\nusing namespace std;\nint f() {\n",
    tests_are_code=True,
    libraries=("crypto",),
)


@pytest.fixture(autouse=True)
def forget() -> None:
    missing_header.cache_clear()


def test_what_code_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libraries_of(MD5.preamble) == ("crypto",) and libraries_of("#include <map>\n") == ()

    def fail(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1)

    monkeypatch.setattr(needs.subprocess, "run", fail)
    assert "openssl/md5.h is missing" in str(missing_need(MD5)) and "libssl-dev" in str(missing_need(MD5))
    assert missing_need(Problem("plain", "", preamble="#include <map>\n")) is None


@pytest.mark.skipif(missing_header("openssl/md5.h") is not None, reason="libssl-dev is not installed here")
def test_a_library_is_linked_where_a_problem_asks_for_it(pool: GraderPool) -> None:
    assert missing_need(MD5) is None
    assert grade(pool, "    return 0;\n}\n", MD5).result().accepted
    record = MD5.to_record() | {"libraries": []}
    assert not grade(pool, "    return 0;\n}\n", problem_from_record(record)).result().compiled


def test_libraries_of_a_record() -> None:
    assert problem_from_record(MD5.to_record()) == MD5
    with pytest.raises(ProblemError, match="'evil'"):
        problem_from_record(MD5.to_record() | {"libraries": ["evil"]})
    with pytest.raises(ProblemError, match="contain only names"):
        problem_from_record(MD5.to_record() | {"libraries": [1]})
