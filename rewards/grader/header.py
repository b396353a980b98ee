"""Precompiled headers for the prologues that programs begin with (`rewards/grader/prologue.py`), made once.

Models write few different prologues, many times each, and reading the headers takes most of the time of compiling a
small program. The store counts the prologues that it is shown. When one comes again, a background thread compiles
it, in the sandbox in which programs are compiled; no verdict waits for that. From then on a program that begins with
these lines is compiled as `-include HEADER` and its rest, which is the same program. The compiler finds the precompiled
form alone, without the text, so that it says so when it cannot use it; the judge then compiles the program as it is.

Headers are made with our edition of three of the library's files (`rewards/grader/apart.py`).

The files lie on tmpfs in one folder for a compiler and its flags, shared by all pools of this user. Their names hold a
digest of their content, which is read through before the first use, and a change of size or date is seen before any
other. Together they keep within a number of bytes: the one that was used longest ago goes first. The last one who holds
a lease on the folder removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rewards.errors import GraderError, GraderFault
from rewards.grader.apart import FILES, INCLUDES, Part, part_apart
from rewards.grader.apart import PREFIX as APART
from rewards.grader.lean import WHOLE, LeanHeader, compiler_key, flags, lean_header
from rewards.grader.prologue import read_prologue
from rewards.grader.runner import MESSAGES, Limits
from rewards.grader.sandbox import Sandbox
from rewards.grader.scratch import ScratchFolder, file_digest, free_bytes, scratch_root, sweep
from rewards.grader.toolchains import Toolchain
from storage.cache import private

PREFIX = "headers"
DEFAULT_BYTES = 1 << 30
NICENESS = 10  # behind the graders
_BUILD = "build"
_SIGHTINGS = 2  # of a prologue that no header serves
_SIGHTINGS_WITH_PREFIX = 4  # of one whose first lines have a header: there is less to gain
_LARGEST = 160 << 20  # bytes of one header; bits/stdc++.h takes 101 MB
_LIMITS = Limits(cpu_s=60.0, memory_bytes=4 << 30, file_bytes=2 * _LARGEST, wall_s=300.0, idle_s=300.0)

Key = tuple[tuple[str, ...], bool]  # the prologue's lines; whether the lean text stands for bits/stdc++.h


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A program as a precompiled header and its rest. With a `lean` one only success proves anything."""

    header: str  # for -include
    rest: str
    lean: bool = False
    archives: tuple[str, ...] = ()  # of functions that the header only calls, to be linked


class HeaderStore:
    """The headers of one compiler. Safe to use from many threads; `close` it, or use it as a context manager.

    limit_bytes: of all headers together; 0 makes none.
    """

    def __init__(self, toolchain: Toolchain, sandbox: Sandbox, limit_bytes: int = DEFAULT_BYTES) -> None:
        self.lease = HeaderLease(scratch_root() / f"{PREFIX}-{compiler_key(toolchain)}")
        self.folder = self.lease.folder
        self.limit_bytes = limit_bytes
        self.built = 0
        self.faults: dict[str, str] = {}  # header: why it could not be made
        self._toolchain = toolchain
        self._sandbox = sandbox
        self._lean: LeanHeader | None = None
        self._apart: list[Part] = []
        self._archives: list[tuple[Path, os.stat_result]] = []
        self._prepared = threading.Event()
        self._sightings: Counter[Key] = Counter()
        self._asked: set[Key] = set()  # being made, ready, or not to be had
        self._ready: dict[Key, tuple[Path, os.stat_result]] = {}
        self._jobs: queue.Queue[Key | None] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="headers", daemon=True)
        if limit_bytes:
            self._thread.start()

    # ------------------------------------------------------------------ for the pool

    def shortcuts(self, source: str) -> tuple[Shortcut, ...]:
        """The ways to compile this program faster, fastest first. Counts its prologue."""
        prologue = read_prologue(source)
        lines = prologue.includes
        if not lines or not self.limit_bytes or (WHOLE in lines and not self._prepared.is_set()):
            return ()
        lean = self._lean is not None and self._lean.serves(source, lines)
        self._sighted((lines, lean))
        if not self._may_link(source):
            return ()
        found, archives = [], tuple(str(path) for path, _ in self._archives)
        for kind in (True, False) if lean else (False,):
            if best := self._longest(lines, kind):
                header, count = best
                found.append(Shortcut(header, prologue.without(prologue.lines[:count]), kind, archives))
        return tuple(found)

    def missed(self, source: str) -> None:
        """Tell that the program had to be compiled as it is: with the whole header it would not have had to."""
        if lines := read_prologue(source).includes:
            self._sighted((lines, False))

    def wait(self) -> None:
        """Until everything that was asked for is made. For tests and measurements."""
        if self.limit_bytes:
            self._prepared.wait()
            self._jobs.join()

    def describe(self) -> dict[str, object]:
        """JSON-ready: what was made, and what could not be."""
        sizes = [info.st_size for _, info in self._files()]
        about = {"built": self.built, "kept": len(sizes), "bytes": sum(sizes), "limit": self.limit_bytes}
        return about | ({"faults": dict(self.faults)} if self.faults else {})

    def close(self) -> None:
        """End a build that runs, and give up the lease."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                _end(self._process)
        if self.limit_bytes:
            self._jobs.put(None)
            self._thread.join()
        self.lease.release()

    def __enter__(self) -> HeaderStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ looking up

    def _sighted(self, key: Key) -> None:
        with self._lock:
            self._sightings[key] += 1
            wanted = _SIGHTINGS_WITH_PREFIX if self._longest(*key) else _SIGHTINGS
            if self._sightings[key] >= wanted and key not in self._asked and not self._closed:
                self._asked.add(key)
                self._jobs.put(key)

    def _longest(self, lines: tuple[str, ...], lean: bool) -> tuple[str, int] | None:
        """The header of the most leading lines that is ready, and their number."""
        for count in range(len(lines), 0, -1):
            if header := self._usable((lines[:count], lean)):
                return header, count
        return None

    def _may_link(self, source: str) -> bool:
        """Whether a program names none of the archives' own functions, and they are as they were."""
        return not self._archives or (APART not in source and all(_unchanged(*archive) for archive in self._archives))

    def _usable(self, key: Key) -> str | None:
        """The header, if it is ready and nobody has changed it since."""
        if (entry := self._ready.get(key)) is None:
            return None
        path, before = entry
        if _unchanged(path, before):
            with suppress(FileNotFoundError):
                os.utime(path, ns=(time.time_ns(), before.st_mtime_ns))  # the date of its last use, for all pools
            return str(path.with_suffix(""))
        self._ready.pop(key, None)
        self._asked.discard(key)
        return None

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """All headers in the folder, the one first that was used longest ago."""
        found = [(path, info) for path in self.folder.glob("*.h.gch") if (info := _stat(path))]
        return sorted(found, key=lambda file: file[1].st_atime_ns)

    # ------------------------------------------------------------------ the thread that makes them

    def _work(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)  # of this thread and what it starts
        sweep(_BUILD, self.folder)
        self._try("the lean bits/stdc++.h", self._find_lean)
        for name in FILES:
            self._try(f"<{name}> apart", partial(self._find_apart, name))
        self._prepared.set()
        while True:
            key = self._jobs.get()
            if key is None or self._closed:
                return
            self._try(" ".join(key[0]), partial(self._make, key))
            self._jobs.task_done()

    def _try(self, name: str, make: Callable[[], None]) -> None:
        """Make something, or keep why it could not be made: programs are then compiled as they are."""
        if self._closed:
            return
        try:
            make()
        except (GraderError, GraderFault, OSError, subprocess.TimeoutExpired) as error:
            if not self._closed:
                self.faults[name] = " ".join(str(error).split())[:300]

    def _find_lean(self) -> None:
        self._lean = lean_header(self._toolchain)

    def _find_apart(self, name: str) -> None:
        """Put the archive of a file of the library where the sandbox sees it."""
        if (part := part_apart(self._toolchain, name)) is None:
            return
        path = self.folder / part.archive.name
        if path.exists() and file_digest(path) not in path.name:
            path.unlink(missing_ok=True)
        with ScratchFolder(_BUILD, self.folder) as build, suppress(FileExistsError):  # another pool's is as good
            os.link(shutil.copyfile(part.archive, build / path.name), path)
        self._apart.append(part)
        self._archives.append((path, path.stat()))

    def _make(self, key: Key) -> None:
        """Find the header in the folder, undamaged, or compile it."""
        lines, lean = key
        lean_text = self._lean.text if lean and self._lean else ""
        text = "\n".join(lines).replace(WHOLE, '#include "lean.h"' if lean else WHOLE) + "\n"
        apart = [part.archive.name for part in self._apart]
        stem = hashlib.sha256(f"{text}{lean_text}{apart}".encode()).hexdigest()[:24]
        if found := self._find(stem):
            self._ready[key] = found, found.stat()
            return
        if (free := free_bytes(self.folder)) < 2 * _LARGEST:
            raise GraderError(f"{self.folder.parent} has only {free >> 20} MB of free space")
        with ScratchFolder(_BUILD, self.folder) as build:
            (build / "lean.h").write_text(lean_text)
            (build / "header.h").write_text(text)
            for part in self._apart:
                part.write(build / INCLUDES)
            made = self._compile(build)
            self._make_room(made.stat().st_size)
            path = self.folder / f"{stem}-{file_digest(made)}.h.gch"
            os.replace(made, path)
        self._ready[key] = path, path.stat()
        self.built += 1

    def _find(self, stem: str) -> Path | None:
        """The undamaged header of this name that another pool has made."""
        for path in self.folder.glob(f"{stem}-*.h.gch"):
            if path.name == f"{stem}-{file_digest(path)}.h.gch":
                return path
            path.unlink(missing_ok=True)
        return None

    def _compile(self, build: Path) -> Path:
        compiler = [self._toolchain.compile[0], *flags(self._toolchain), "-w", "-fmax-errors=3"]
        command = [*compiler, "-isystem", INCLUDES, "-x", "c++-header", "header.h", "-o", "header.h.gch"]
        run = self._sandbox.compile(command, build, _LIMITS, self._toolchain.folders, self._started)
        if run.how != "exit" or run.code:
            said = (build / MESSAGES).read_text(errors="replace").strip()
            raise GraderError(f"{self._toolchain.name} cannot precompile it ({run.how} {run.code}): {said[:200]}")
        return build / "header.h.gch"

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._process = process
            if self._closed:
                _end(process)

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago until `size` more bytes are within the limit."""
        if size > self.limit_bytes:
            raise GraderError(f"it takes {size >> 20} MB, the store may hold {self.limit_bytes >> 20}")
        files = self._files()
        while files and size + sum(info.st_size for _, info in files) > self.limit_bytes:
            files.pop(0)[0].unlink(missing_ok=True)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _unchanged(path: Path, before: os.stat_result) -> bool:
    now = _stat(path)
    return now is not None and all(
        getattr(now, part) == getattr(before, part) for part in ("st_size", "st_mtime_ns", "st_ino")
    )


class HeaderLease:
    """A share of the headers in `folder`. Leave with `release`, or as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = self._acquire()

    def _acquire(self) -> int:
        while True:
            private(self.folder.parent)
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


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a sandbox with what it has started, which would wait for ever if the sandbox was still being set up."""
    with suppress(ProcessLookupError, FileNotFoundError, ChildProcessError):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # it starts no more
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    process.kill()
