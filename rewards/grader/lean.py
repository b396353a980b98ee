"""The lean `bits/stdc++.h`: the compiler's own without the headers that cost most and are used least.

With the whole header precompiled, GCC still instantiates at the end of every program the templates that `<regex>`,
`<filesystem>` and the headers of threads mention: most of the time of a small program. The lean text leaves those
headers out. It serves a program that uses none of the names that only the whole header makes known, which are found by
asking the compiler. Whether a word stands in code, a comment or a string is not looked at, and a program that can make
names of pieces (`##`, line continuations) is not served. What does not compile with it proves nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import GraderError
from rewards.grader.prologue import SPLICE
from rewards.grader.scratch import grader_cache
from rewards.grader.toolchains import Toolchain

WHOLE = "#include <bits/stdc++.h>"
LEFT_OUT = (
    *("regex", "filesystem", "execution", "memory_resource", "codecvt", "charconv", "random", "chrono", "valarray"),
    *("atomic", "thread", "future", "mutex", "shared_mutex", "condition_variable"),
    *("barrier", "latch", "semaphore", "stop_token"),
)
_STDIN = ("-x", "c++")
_QUESTIONS = ("using ::{0};", "using std::{0};", "namespace same = std::{0};")
_MACRO = re.compile(r"^#define (\w+)", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z_]\w*")
_PASTED = re.compile(r"##|%:%:|\?\?=")


@dataclass(frozen=True, slots=True)
class LeanHeader:
    """The text, and the words that no program may hold that is to be served by it."""

    text: str
    names: frozenset[str]

    def serves(self, source: str, lines: Sequence[str]) -> bool:
        """Whether a program with these prologue lines means the same with the lean text in the whole header's place."""
        if WHOLE not in lines or _PASTED.search(source) or SPLICE.search(source):
            return False
        return self.names.isdisjoint(_WORD.findall(source))


def compiler_key(toolchain: Toolchain) -> str:
    """Names the compiler (path, date, version) and its flags: what is made for one serves no other."""
    compiler = toolchain.compile[0]
    version = subprocess.run([compiler, "-v"], capture_output=True, text=True, check=False).stderr
    text = f"{compiler} {os.stat(compiler).st_mtime_ns} {version} {toolchain.name}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flags(toolchain: Toolchain) -> list[str]:
    """The flags that a precompiled header and the program must share."""
    return [flag for flag in toolchain.compile[1:] if flag.startswith(("-O", "-std="))]


def lean_header(toolchain: Toolchain) -> LeanHeader:
    """The lean header of this compiler, its names from the cache or found now (6 s).

    Raises `GraderError` where the compiler has no `bits/stdc++.h`.
    """
    text = _lean_text(toolchain)
    digest = hashlib.sha256(f"{text} {LEFT_OUT} {_QUESTIONS}".encode()).hexdigest()[:16]
    cached = grader_cache() / f"names-{compiler_key(toolchain)}-{digest}"
    names = _stored_names(cached)
    if names is None:
        names = _names_left_out(toolchain, text)
        _store_names(cached, names)
    return LeanHeader(text, names)


def _stored_names(path: Path) -> frozenset[str] | None:
    """The names in a file whose first line is the digest of the others; None where it is missing or damaged."""
    try:
        digest, _, words = path.read_text().partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return frozenset(words.split()) if digest == hashlib.sha256(words.encode()).hexdigest() else None


def _store_names(path: Path, names: frozenset[str]) -> None:
    words = "\n".join(sorted(names))
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(f"{hashlib.sha256(words.encode()).hexdigest()}\n{words}")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full or read-only cache: the names are found again next time


def _call(toolchain: Toolchain, arguments: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
    """Run the compiler on `text`."""
    command = [toolchain.compile[0], *flags(toolchain), *_STDIN, *arguments, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)


def library_file(toolchain: Toolchain, text: str, name: str) -> Path | None:
    """The file whose path ends with `/name` among those that the compiler reads for `text`."""
    read = _call(toolchain, ["-M"], text).stdout.replace("\\\n", " ").split()
    return next((Path(word) for word in read if word.endswith(f"/{name}")), None)


def _lean_text(toolchain: Toolchain) -> str:
    """The compiler's own `bits/stdc++.h` without the includes that are left out."""
    if (path := library_file(toolchain, WHOLE, "bits/stdc++.h")) is None:
        raise GraderError(f"{toolchain.name} has no bits/stdc++.h")
    left_out = re.compile(rf"^\s*#\s*include\s*<({'|'.join(LEFT_OUT)})>.*$", re.MULTILINE)
    return left_out.sub("", path.read_text())


def _names_left_out(toolchain: Toolchain, lean: str) -> frozenset[str]:
    """What only the whole header makes known: names in the global namespace and in std, namespaces, macros.

    Members of the classes left out need no mention: without such a name no program comes upon one.
    """

    def preprocessed(text: str, how: str) -> str:
        return _call(toolchain, ["-E", how], text).stdout

    def known(text: str, candidates: list[str]) -> set[tuple[str, str]]:
        """The (word, question) pairs which the compiler accepts after reading the header."""
        asked = [(word, question) for word in candidates for question in _QUESTIONS]
        lines = (
            f"namespace probe_{index} {{ {question.format(word)} }}" for index, (word, question) in enumerate(asked)
        )
        program = f'{text}\n#line 1 "probe"\n' + "\n".join(lines)
        said = _call(toolchain, ["-fsyntax-only", "-fmax-errors=0"], program).stderr
        refused = {int(number) - 1 for number in re.findall(r"^probe:(\d+):\d+: error", said, re.MULTILINE)}
        return {pair for index, pair in enumerate(asked) if index not in refused}

    fewer = Counter(_WORD.findall(preprocessed(lean, "-P")))
    more = Counter(_WORD.findall(preprocessed(WHOLE, "-P"))) - fewer
    candidates = sorted(word for word in more if not word.startswith("_"))
    names = {word for word, _ in known(WHOLE, candidates) - known(lean, candidates)}
    macros = set(_MACRO.findall(preprocessed(WHOLE, "-dM"))) - set(_MACRO.findall(preprocessed(lean, "-dM")))
    reserved = {word for word in more if word.startswith("_") and word.strip("_") and word not in fewer}
    return frozenset(names | macros | reserved | {*LEFT_OUT, "pmr"})
