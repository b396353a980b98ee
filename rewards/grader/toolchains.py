"""One entry per language: how to compile a source, how to run the result, what the sandbox must show of the host.

A command is a tuple of arguments; `{source}` and `{program}` stand for paths, `{flags}` for those of the precompiled
header. A new language is a new entry in `_entries`. Nothing here compiles or runs a program.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rewards.errors import GraderError
from rewards.problem import LANGUAGES

DEFAULT_COMPILER = "g++"
DEFAULT_STANDARD = "c++17"
COMPILERS = ("g++", "clang++")
SEARCH_PATH = "/usr/bin:/bin"  # of compilers in the sandbox
_STANDARDS = ("c++11", "c++14", "c++17", "c++20", "c++23")
_MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What the judge needs to know of a language. `header` says that it takes precompiled headers."""

    name: str
    source_name: str
    compile: tuple[str, ...]
    run: tuple[str, ...]
    program_name: str = "program"  # of the compiled program; some interpreters look at its ending
    header: bool = False
    extra_memory: int = 16 * _MEGABYTE  # address space of the language's own libraries, on top of the limit
    folders: tuple[str, ...] = ()  # host folders that the run needs in addition to the system's libraries
    environment: tuple[tuple[str, str], ...] = ()


def _need(binary: str, language: str, advice: str) -> str:
    path = shutil.which(binary)
    if path is None:
        raise GraderError(f"{binary} is missing, which grading {language} needs: {advice}")
    return path


def _own_folders(binary: str) -> tuple[str, ...]:
    """What the sandbox must show of a compiler that is not under /usr: its prefix, where it looks like one."""
    folder = Path(binary).parent
    if folder in (Path("/usr/bin"), Path("/bin")):
        return ()
    is_prefix = (folder.parent / "lib" / "gcc").is_dir() or (folder.parent / "lib" / "clang").is_dir()
    return (str(folder.parent if is_prefix else folder),)


def linker_flags() -> tuple[str, ...]:
    """gold or mold when present: 15 to 25 ms less CPU time for each program than the default linker."""
    if shutil.which("ld.gold", path=SEARCH_PATH):
        return ("-fuse-ld=gold",)
    if shutil.which("mold", path=SEARCH_PATH):  # by default it hides its work in threads and a child that outlives it
        return ("-fuse-ld=mold", "-Wl,--no-fork", "-Wl,--thread-count=1")
    return ()


def _cpp(compiler: str, standard: str) -> Toolchain:
    if compiler not in COMPILERS:
        raise GraderError(f"compiler {compiler!r} is unknown; use one of {', '.join(COMPILERS)}")
    if standard not in _STANDARDS:
        raise GraderError(f"C++ standard {standard!r} is unknown; use one of {', '.join(_STANDARDS)}")
    package = "g++" if compiler == "g++" else "clang"
    binary = _need(compiler, "C++", f"install it (Debian, Ubuntu: apt-get install {package})")
    # One error refuses a program; the next ones would come after templates of the whole library were instantiated.
    errors = "-fmax-errors=1" if compiler == "g++" else "-ferror-limit=1"
    flags = ("-O2", f"-std={standard}", "-w", errors, "{flags}", *linker_flags())
    return Toolchain(
        name=f"{compiler} -O2 -std={standard}",
        source_name="main.cpp",
        compile=(binary, *flags, "{source}", "-o", "{program}"),
        run=("{program}",),
        folders=_own_folders(binary),
        header=compiler == "g++",  # clang takes a precompiled header only when it is forced upon every program
    )


def _c(compiler: str, standard: str) -> Toolchain:
    binary = _need("gcc", "C", "install it (Debian, Ubuntu: apt-get install gcc)")
    flags = ("-O2", "-std=gnu17", "-w", "-fmax-errors=1", *linker_flags())
    command = (binary, *flags, "{source}", "-o", "{program}", "-lm")
    return Toolchain("gcc -O2 -std=gnu17", "main.c", command, run=("{program}",), folders=_own_folders(binary))


_PYTHON_COMPILE = """
import py_compile, sys
try:
    py_compile.compile(sys.argv[1], sys.argv[2], "main.py", doraise=True)
except py_compile.PyCompileError as error:
    sys.exit(error.msg)
"""


def _python(compiler: str, standard: str) -> Toolchain:
    """The interpreter that runs this process, without its virtual environment."""
    binary = os.path.realpath(getattr(sys, "_base_executable", sys.executable) or sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    return Toolchain(
        name=f"Python {sys.version.split()[0]}",
        source_name="main.py",
        program_name="main.pyc",
        compile=(binary, "-I", "-S", "-B", "-c", _PYTHON_COMPILE, "{source}", "{program}"),
        run=(binary, "-I", "-B", "{program}"),
        extra_memory=64 * _MEGABYTE,
        folders=(prefix, str(Path(binary).parent)),
    )


def _q(compiler: str, standard: str) -> Toolchain:
    advice = "install kdb+ with its licence, put q on the PATH and set QHOME"
    binary = os.path.realpath(_need("q", "Q", advice))
    home = os.path.realpath(os.environ.get("QHOME") or os.path.join(os.path.expanduser("~"), "q"))
    if not os.path.isfile(os.path.join(home, "q.k")):
        raise GraderError(f"q.k is missing from {home}, which grading Q needs: {advice}")
    return Toolchain(
        name="q",
        source_name="main.q",
        program_name="program.q",
        compile=("/bin/cp", "{source}", "{program}"),  # q has no compiler: an error shows when the program runs
        run=(binary, "{program}", "-q"),
        extra_memory=512 * _MEGABYTE,
        folders=(home, str(Path(binary).parent)),
        environment=(("QHOME", home), ("QLIC", os.environ.get("QLIC", home))),
    )


_entries: dict[str, Callable[[str, str], Toolchain]] = {"cpp": _cpp, "c": _c, "python": _python, "q": _q}


def with_libraries(toolchain: Toolchain, libraries: Sequence[str]) -> Toolchain:
    """The toolchain, linking these of `LIBRARIES` as well."""
    return replace(toolchain, compile=(*toolchain.compile, *(f"-l{name}" for name in libraries)))


def find_toolchain(language: str, compiler: str = DEFAULT_COMPILER, standard: str = DEFAULT_STANDARD) -> Toolchain:
    """The toolchain of a language. Raises `GraderError` for an unknown language or a missing program."""
    if language not in _entries:
        raise GraderError(f"language {language!r} is unknown; use one of {', '.join(LANGUAGES)}")
    return _entries[language](compiler, standard)


def compiler_version(binary: str) -> str:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    return said.splitlines()[0] if said else "unknown"
