"""HumanEval-X in C++ (Apache-2.0): a signature to complete and a `main` with assertions, which is run behind the
program."""

from __future__ import annotations

from data.sources.base import Loaded, Record, Source
from data.sources.functions import function_problem

# What the benchmark's harness (CodeGeeX, `codegeex/benchmark/utils.py`) puts before every C++ program.
_HEADERS = ("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring", "iostream")
INCLUDES = "".join(f"#include<{name}>\n" for name in _HEADERS)
# The tasks that need more than the compiler brings, by the header that they include.
NEEDS = {"boost/any.hpp": ("CPP/22", "CPP/137"), "openssl/md5.h": ("CPP/162",)}


def convert(record: Record) -> Loaded:
    return function_problem(record, prefix="CPP/", source="humaneval-x", includes=INCLUDES, license="Apache-2.0")


SOURCE = Source("humaneval_x", convert, hub="THUDM/humaneval-x", config="cpp", split="test")
