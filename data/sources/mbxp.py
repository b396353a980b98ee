"""MBXP in C++ (CC BY 4.0), the problems of MBPP in other languages: a signature to complete and a `main` that throws
where a result is wrong."""

from __future__ import annotations

from data.sources.base import Loaded, Record, Source
from data.sources.functions import function_problem


def convert(record: Record) -> Loaded:
    return function_problem(record, prefix="MBCPP/", source="mbxp", includes="", license="CC BY 4.0")


SOURCE = Source("mbxp", convert, hub="mxeval/mbxp", config="cpp", split="test")
