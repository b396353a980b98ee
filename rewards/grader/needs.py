"""What the code of some problems needs beyond the compiler: headers of other packages, and libraries to link.

A problem whose needs are not met here cannot be solved, so it is left out rather than counted as failed.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache

from rewards.grader.toolchains import DEFAULT_COMPILER, DEFAULT_STANDARD, find_toolchain
from rewards.problem import Problem


@dataclass(frozen=True, slots=True)
class Package:
    """A package of Debian and Ubuntu, and the libraries to link with its headers."""

    name: str
    libraries: tuple[str, ...] = ()


PACKAGES = {"boost": Package("libboost-dev"), "openssl": Package("libssl-dev", ("crypto",))}  # by the headers' folder
_INCLUDE = re.compile(rf"^[ \t]*#[ \t]*include[ \t]*[<\"]((?:{'|'.join(PACKAGES)})/[\w./+-]+)[>\"]", re.MULTILINE)


def libraries_of(code: str) -> tuple[str, ...]:
    """The libraries that code with these includes is linked with."""
    folders = {name.partition("/")[0] for name in _INCLUDE.findall(code)}
    return tuple(library for folder in sorted(folders) for library in PACKAGES[folder].libraries)


def missing_need(problem: Problem) -> str | None:
    """What this machine lacks for the problem's own code, with what to do about it; None where nothing is."""
    code = "\n".join([problem.preamble, *(test.input for test in problem.tests if problem.tests_are_code)])
    for header in sorted(set(_INCLUDE.findall(code))):
        if reason := missing_header(header):
            return reason
    return None


@lru_cache
def missing_header(header: str) -> str | None:
    """Why code that includes this header cannot be compiled and linked here, or None.

    Raises `GraderError` where there is no compiler."""
    package = PACKAGES[header.partition("/")[0]]
    compiler = find_toolchain("cpp", DEFAULT_COMPILER, DEFAULT_STANDARD).compile[0]
    libraries = [f"-l{name}" for name in package.libraries]
    program = f"#include <{header}>\nint main() {{}}\n"
    command = [compiler, "-x", "c++", "-", "-o", "/dev/null", *libraries]
    if subprocess.run(command, input=program, capture_output=True, text=True, check=False).returncode == 0:
        return None
    return f"{header} is missing (Debian, Ubuntu: apt-get install {package.name})"
