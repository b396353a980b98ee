"""The precompiled `bits/stdc++.h`: made once per compiler and flags, kept on disk, shared on tmpfs by all who grade.

It cuts a compilation from 0.9 s to 0.26 s. GCC checks it and falls back to the text by itself when a program's flags,
macros or earlier includes do not fit, so it never changes a verdict; `-H` shows which of the two happened, and the
verdict reports it.

Of this header two are made. Most of the time that is left goes into templates which GCC instantiates anew in every
program because `<regex>`, `<filesystem>` and the headers of threads mention them. The *lean* one leaves those out (0.18
s). It serves a program that uses none of the names which only the full one makes known (`names`, found by asking the
compiler), and an error found with the lean one is only believed when the full one finds it, too.

A third one is `<iostream>` alone, for programs that include it first, as most programs without `bits/stdc++.h` do: 0.07
s instead of 0.21 s.

The copies on tmpfs (about 210 MB) belong to all who hold a lease on them; the last one to leave removes them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rewards.errors import GraderError
from rewards.extraction import LITERALS
from rewards.storage import cache_root, scratch_root
from rewards.toolchains import Toolchain

PREFIX = "header"
FULL, LEAN, STREAM = "full", "lean", "stream"  # folders for -I
_NAMES = Path(LEAN) / "names"
_FILES = {FULL: Path("bits") / "stdc++.h.gch", LEAN: Path("bits") / "stdc++.h.gch", STREAM: Path("iostream.gch")}
_LEFT_OUT = (
    *("regex", "filesystem", "execution", "memory_resource", "codecvt"),
    *("thread", "future", "mutex", "shared_mutex", "condition_variable", "barrier", "latch", "semaphore", "stop_token"),
)
_INCLUDE = "#include <bits/stdc++.h>\n"
_STREAM_INCLUDE = "#include <iostream>\n"
_STDIN = ("-x", "c++")
_QUESTIONS = ("using ::{0};", "using std::{0};", "namespace same = std::{0};")
_MACRO = re.compile(r"^#define (\w+)", re.MULTILINE)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def identifiers(text: str) -> list[str]:
    """All words of a C++ text that could be names, so not those in comments, strings and characters."""
    return _IDENTIFIER.findall(LITERALS.sub(" ", text))


def lean_names(folder: Path) -> frozenset[str] | None:
    """The names that a program must not use to be served by the lean header in `folder`; None where there is none."""
    path = folder / _NAMES
    return frozenset(path.read_text().split()) if path.is_file() else None


def header_key(toolchain: Toolchain) -> str:
    """Names the compiler (path, version, date) and the flags: a header serves no other combination."""
    compiler = toolchain.compile[0]
    version = subprocess.run([compiler, "-v"], capture_output=True, text=True, check=False).stderr
    text = f"{compiler} {os.stat(compiler).st_mtime_ns} {version} {toolchain.name} {_LEFT_OUT} {_QUESTIONS} {_FILES}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_headers(toolchain: Toolchain) -> Path:
    """The folder on disk with all headers, made now if need be (10 s); concurrent builders wait for the first.

    Raises `GraderError` when the compiler cannot make them.
    """
    folder = cache_root() / f"{PREFIX}-{header_key(toolchain)}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _NAMES).is_file():
            _precompile(toolchain, _INCLUDE, folder, FULL)
            _precompile(toolchain, _STREAM_INCLUDE, folder, STREAM)
            lean = _lean_text(toolchain)
            _precompile(toolchain, lean, folder, LEAN)
            names = sorted(_names_left_out(toolchain, lean))
            temporary = folder / "names.tmp"
            temporary.write_text("\n".join(names) + "\n")
            os.replace(temporary, folder / _NAMES)  # last: it says that all is there
    return folder


def _call(toolchain: Toolchain, arguments: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run the compiler; "-" as the last argument lets it read `text`."""
    flags = [flag for flag in toolchain.compile[1:] if flag.startswith(("-O", "-std="))]
    command = [toolchain.compile[0], *flags, *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def _precompile(toolchain: Toolchain, text: str, folder: Path, which: str) -> None:
    target = folder / which / _FILES[which]
    target.parent.mkdir(parents=True, exist_ok=True)
    wrapper, temporary = folder / which / "wrapper.h", target.with_suffix(".tmp")
    wrapper.write_text(text)
    made = _call(toolchain, ["-x", "c++-header", str(wrapper), "-o", str(temporary)])
    if made.returncode != 0:
        header = _FILES[which].with_suffix("")
        raise GraderError(f"{toolchain.name} cannot precompile {header}: {made.stderr.strip()[:200]}")
    os.replace(temporary, target)


def _lean_text(toolchain: Toolchain) -> str:
    """The compiler's own `bits/stdc++.h` without the includes that are left out."""
    read = _call(toolchain, [*_STDIN, "-M", "-"], _INCLUDE).stdout.replace("\\\n", " ").split()
    path = next((word for word in read if word.endswith("bits/stdc++.h")), None)
    if path is None:
        raise GraderError(f"{toolchain.name} has no bits/stdc++.h")
    left_out = re.compile(rf"^\s*#\s*include\s*<({'|'.join(_LEFT_OUT)})>.*$", re.MULTILINE)
    return left_out.sub("", Path(path).read_text())


def _names_left_out(toolchain: Toolchain, lean: str) -> set[str]:
    """What only the full header makes known: names in the global namespace and in std, namespaces, macros.

    Members of the classes left out need no mention: without such a name no program comes upon one.
    """

    def preprocessed(text: str, how: str) -> str:
        return _call(toolchain, [*_STDIN, "-E", how, "-"], text).stdout

    def known(text: str, candidates: list[str]) -> set[tuple[str, str]]:
        """The (word, question) pairs which the compiler accepts after reading the header."""
        asked = [(word, question) for word in candidates for question in _QUESTIONS]
        lines = (
            f"namespace probe_{index} {{ {question.format(word)} }}" for index, (word, question) in enumerate(asked)
        )
        program = f'{text}\n#line 1 "probe"\n' + "\n".join(lines)
        said = _call(toolchain, [*_STDIN, "-fsyntax-only", "-fmax-errors=0", "-"], program).stderr
        refused = {int(number) - 1 for number in re.findall(r"^probe:(\d+):\d+: error", said, re.MULTILINE)}
        return {pair for index, pair in enumerate(asked) if index not in refused}

    fewer = Counter(identifiers(preprocessed(lean, "-P")))
    more = Counter(identifiers(preprocessed(_INCLUDE, "-P"))) - fewer
    candidates = sorted(word for word in more if not word.startswith("_"))
    names = {word for word, _ in known(_INCLUDE, candidates) - known(lean, candidates)}
    macros = set(_MACRO.findall(preprocessed(_INCLUDE, "-dM"))) - set(_MACRO.findall(preprocessed(lean, "-dM")))
    reserved = {word for word in more if word.startswith("_") and word not in fewer}
    return names | macros | reserved | {*_LEFT_OUT, "pmr"}


def lease_headers(toolchain: Toolchain) -> HeaderLease:
    """A lease on the copies on tmpfs, made now if nobody has. Raises `GraderError` as `build_headers` does."""
    lease = HeaderLease(scratch_root() / f"{PREFIX}-{header_key(toolchain)}")
    if not (lease.folder / _NAMES).is_file():
        built = build_headers(toolchain)
        for path in (*(Path(which) / file for which, file in _FILES.items()), _NAMES):
            temporary = lease.folder / f"{os.getpid()}.tmp"
            shutil.copyfile(built / path, temporary)
            (lease.folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, lease.folder / path)
    return lease


class HeaderLease:
    """A share of the copies on tmpfs, in `folder`. Leave with `release`, or as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = self._acquire()

    def _acquire(self) -> int:
        while True:
            self.folder.mkdir(exist_ok=True)
            try:
                lock = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # its last user has just removed it
            fcntl.flock(lock, fcntl.LOCK_SH)
            if self.folder.is_dir() and self.folder.stat().st_ino == os.fstat(lock).st_ino:
                return lock
            os.close(lock)

    def release(self) -> None:
        if self._lock < 0:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.folder, ignore_errors=True)
        except BlockingIOError:
            pass  # others use it
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> HeaderLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
