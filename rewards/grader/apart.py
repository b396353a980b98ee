"""Parts of libstdc++ that are compiled once into an archive, apart from the precompiled headers.

GCC instantiates at the end of every program whatever templates the inline functions of its headers mention, called or
not. `to_string`, `stoi` and their kin, the literals `""s` and the special functions of <cmath> mention half of all that
`<bits/stdc++.h>` does: a third of the time of a small program. In a header made with our edition of the two files each
of them only calls a function of the archive, so what a program means stays the same, and a second definition of one
stays an error. A function that does not look as expected, in another version of the library say, stays as it is.

A program that uses std::regex instantiates some hundred functions, which took 2.5 s. Our edition of <regex> declares
those for characters as instantiated elsewhere (`extern template`), namely in the archive.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import GraderError
from rewards.grader.lean import compiler_key, flags, library_file
from rewards.grader.scratch import file_digest, grader_cache
from rewards.grader.toolchains import Toolchain

PREFIX = "__apart_"  # of the archive's functions; a reserved name
INCLUDES = "apart"  # the folder of our edition, for -isystem
_STRINGS = (
    *("stoi", "stol", "stoul", "stoll", "stoull", "stof", "stod", "stold", "to_string", "to_wstring"),
    'operator""s',
)
_REGEX = (
    "class __detail::_Scanner<char>",
    "class __detail::_NFA<regex_traits<char>>",
    "class __detail::_Compiler<regex_traits<char>>",
    "class basic_regex<char>",
    *(
        instance.replace("IT", iterator)
        for iterator in ("string::const_iterator", "const char*")
        for instance in (
            "bool __detail::__regex_algo_impl(IT, IT, match_results<IT>&, const basic_regex<char>&, "
            "regex_constants::match_flag_type, __detail::_RegexExecutorPolicy, bool)",
            *("class match_results<IT>", "class regex_iterator<IT>", "class regex_token_iterator<IT>"),
        )
    ),
)


@dataclass(frozen=True, slots=True)
class _Edition:
    """What of a file is to stand apart: inline functions (None: all), and instances of std's templates."""

    include: str  # the header that reads the file
    functions: tuple[str, ...] | None = ()  # by name
    instances: tuple[str, ...] = ()


FILES: Mapping[str, _Edition] = {  # their paths end so
    "bits/basic_string.h": _Edition("string", functions=_STRINGS),
    "bits/specfun.h": _Edition("cmath", functions=None),
    "regex": _Edition("regex", instances=_REGEX),
}
_BEFORE_CONSTEXPR_STRINGS = ("c++11", "c++14", "c++17")
_FUNCTION = re.compile(
    r"^(?P<before>.*)\n"
    r"(?P<indent> +)inline (?P<type>[\w:<> ]+)\n"
    r'(?P=indent)(?P<name>\w+|operator""s)\((?P<parameters>[^(){};]*)\)'
    r"(?:\s*#if[^\n]*|\s*noexcept[^\n]*|\s*#endif)*\s*(?=\{)",
    re.MULTILINE,
)
_DEFAULT = re.compile(r"\s*=\s*[^,]+")
_PARAMETER = re.compile(r"(\w+)\s*(?:,|$)")


@dataclass(frozen=True, slots=True)
class Part:
    """Our edition of a header, `name` below an include folder, and the archive to link a program with."""

    name: str
    text: str
    archive: Path

    def write(self, folder: Path) -> None:
        """Write the header below an include folder."""
        _write(folder / self.name, self.text)


def part_apart(toolchain: Toolchain, name: str) -> Part | None:
    """Our edition of a file in `FILES` for this GCC, from the cache or made now (1 to 5 s). None: it is not used.

    Raises `GraderError` where the library is not as expected, or the compiler does not take our edition of it.
    """
    edition = FILES[name]
    if (path := library_file(toolchain, f"#include <{edition.include}>\n", name)) is None:
        return None
    constexpr_strings = not any(f"-std={standard}" in toolchain.compile for standard in _BEFORE_CONSTEXPR_STRINGS)
    text, definitions = _edited(path.read_text(), edition, constexpr_strings)
    text = f'#line 1 "{path}"\n{text}'
    key = hashlib.sha256(f"{text}{definitions}".encode()).hexdigest()[:16]
    stem = f"apart-{compiler_key(toolchain)}-{key}"
    for kept in grader_cache().glob(f"{stem}-*.a"):
        if kept.name == f"{stem}-{file_digest(kept)}.a":
            return Part(name, text, kept)
        kept.unlink(missing_ok=True)  # damaged
    with tempfile.TemporaryDirectory(dir=grader_cache()) as folder:
        made = _compile(toolchain, name, text, definitions, Path(folder))
        archive = grader_cache() / f"{stem}-{file_digest(made)}.a"
        os.replace(made, archive)
    return Part(name, text, archive)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _edited(text: str, edition: _Edition, constexpr_strings: bool) -> tuple[str, str]:
    """The text for headers, which calls and declares what is in the archive, and that for the archive, which has it.

    Of the former every line has its number, for the compiler's messages.
    """
    header, definitions, position = [], [], 0
    for number, found in enumerate(_FUNCTION.finditer(text)):
        wanted = edition.functions is None or found["name"] in edition.functions
        if not wanted or "template" in found["before"] or (constexpr_strings and "CONSTEXPR" in found["before"]):
            continue
        end = _end_of_body(text, found.end())
        parameters = _DEFAULT.sub("", found["parameters"])
        target = f"{PREFIX}{number}"
        declaration = f"{found['type']} {target}({parameters})"
        arguments = ", ".join(_PARAMETER.findall(parameters))
        lines = "\n" * text.count("\n", found.end(), end)
        header += [text[position : found.end()], f"{{ {declaration}; return {target}({arguments}); }}{lines}"]
        definitions += [text[position:end], f"\n{declaration} {{ return {found['name']}({arguments}); }}\n"]
        position = end
    instances = "".join(f"namespace std {{ template {name}; }}\n" for name in edition.instances)
    declared = instances.replace("{ template", "{ extern template")
    return "".join([*header, text[position:], declared]), "".join([*definitions, text[position:], instances])


def _end_of_body(text: str, start: int) -> int:
    """The index after the brace that closes the one at `start`."""
    depth = 0
    for brace in re.compile("[{}]").finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if not depth:
            return brace.end()
    raise GraderError("a header of the C++ library has a body without an end")


def _compile(toolchain: Toolchain, name: str, text: str, definitions: str, folder: Path) -> Path:
    """The archive of an edition that the compiler takes."""
    _write(folder / "parts" / name, definitions)
    _write(folder / INCLUDES / name, text)
    (folder / "part.cpp").write_text(f"#include <{FILES[name].include}>\n")
    compiler = [toolchain.compile[0], *flags(toolchain), "-w"]
    for command in (
        [*compiler, "-isystem", INCLUDES, "-fsyntax-only", "part.cpp"],
        [*compiler, "-isystem", "parts", "-c", "part.cpp"],
        ["ar", "rcsD", "part.a", "part.o"],  # of an archive only what a program calls is linked
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise GraderError(f"{command[0]} does not take our edition of <{name}>: {done.stderr.strip()}")
    return folder / "part.a"
