"""Precompiled headers of prologues: when they are made, who shares them, and what happens when they cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rewards.errors import GraderError
from rewards.grader import header, lean
from rewards.grader import scratch as storage
from rewards.grader.header import HeaderLease, HeaderStore
from rewards.grader.lean import lean_header
from rewards.grader.pool import GraderPool
from rewards.grader.sandbox import Sandbox, choose_sandbox
from rewards.grader.scratch import scratch_root
from rewards.grader.toolchains import find_toolchain
from rewards.problem import Problem, Test
from rewards.verdict import Verdict

ONE = Problem("one", "", (Test("", "1\n"),))


@pytest.fixture
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for scratch folders that no other process uses."""
    monkeypatch.setattr(storage, "SHARED_MEMORY", tmp_path)
    return scratch_root()


@pytest.fixture
def sandbox() -> Sandbox:
    return choose_sandbox()[0]


@pytest.fixture
def store(own_scratch: Path, sandbox: Sandbox) -> Iterator[HeaderStore]:
    with HeaderStore(find_toolchain("cpp"), sandbox) as store:
        yield store


def program(number: int, includes: str = "#include <stdio.h>\n#include <string.h>\n") -> str:
    return f'{includes}int main() {{ puts("1"); return 0 * {number}; }}\n'


def grade(pool: GraderPool, source: str) -> Verdict:
    verdict = pool.submit(source, ONE).result(60)
    assert verdict.accepted, verdict.diagnostics
    return verdict


def make(store: HeaderStore, source: str) -> str:
    """The header of a program's prologue, after two programs that begin with it."""
    for _ in range(2):
        store.shortcuts(source)
    store.wait()
    return store.shortcuts(source)[0].header


def test_the_second_program_has_a_header_made_and_the_third_uses_it(own_scratch: Path) -> None:
    with GraderPool(1, quiet=True) as pool:
        assert pool.headers is not None
        pool.headers.wait()
        pool.headers.built = 0
        assert [grade(pool, program(n)).header for n in (1, 2)] == ["", ""]
        pool.headers.wait()
        assert pool.headers.built == 1
        assert grade(pool, program(3)).header == "used"
        assert grade(pool, program(4, "// also\n#include\t<stdio.h>\n\n#include <string.h>\n\n")).header == "used"
        longer = grade(pool, program(5, "#include <stdio.h>\n#include <string.h>\n#include <math.h>\n"))
        assert longer.header == "used"  # its first lines have one
        assert grade(pool, program(6, "#include <string.h>\n#include <stdio.h>\n")).header == ""  # another order
        assert pool.counts["header_used"] == 3


def test_stores_share_their_headers_and_the_last_one_removes_them(own_scratch: Path, sandbox: Sandbox) -> None:
    toolchain = find_toolchain("cpp")
    with HeaderStore(toolchain, sandbox) as first:
        path = make(first, program(0))
        with HeaderStore(toolchain, sandbox) as second:
            assert second.folder == first.folder
            assert make(second, program(0)) == path and second.built == 0
        assert Path(f"{path}.gch").is_file()
    assert not list(own_scratch.iterdir())


def test_two_that_build_at_once(own_scratch: Path, sandbox: Sandbox) -> None:
    toolchain = find_toolchain("cpp")
    with HeaderStore(toolchain, sandbox) as first, HeaderStore(toolchain, sandbox) as second:
        threads = [threading.Thread(target=make, args=(store, program(0))) for store in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for store in (first, second):
            assert Path(f"{store.shortcuts(program(0))[0].header}.gch").is_file()


def test_the_store_keeps_within_its_bytes(own_scratch: Path, sandbox: Sandbox) -> None:
    with HeaderStore(find_toolchain("cpp"), sandbox) as probe:
        make(probe, program(0))
        size = probe.describe()["bytes"]
        assert isinstance(size, int)
    with HeaderStore(find_toolchain("cpp"), sandbox, limit_bytes=int(2.5 * size)) as store:
        sources = [program(0, f"#include <stdio.h>\n#include <{name}.h>\n") for name in ("string", "ctype", "errno")]
        make(store, sources[0])
        make(store, sources[1])
        store.shortcuts(sources[0])  # used last
        make(store, sources[2])
        assert [len(store.shortcuts(source)) for source in sources] == [1, 0, 1]
        assert store.describe()["kept"] == 2
        tiny = HeaderStore(find_toolchain("cpp"), sandbox, limit_bytes=1000)
        for _ in range(2):
            tiny.shortcuts(program(0, "#include <math.h>\n"))
        tiny.wait()
        assert "store may hold" in next(iter(tiny.faults.values()))
        tiny.close()


@pytest.mark.parametrize("damage", ["cut", "overwritten", "gone"])
def test_a_damaged_header_is_not_used(own_scratch: Path, damage: str) -> None:
    with GraderPool(1, quiet=True) as pool:
        assert pool.headers is not None
        path = Path(make(pool.headers, program(0)) + ".gch")
        data = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(data[:1000] if damage == "cut" else data[:5000] + bytes(len(data) - 5000))
        assert grade(pool, program(1)).header == ""
        grade(pool, program(2))
        pool.headers.wait()
        assert grade(pool, program(3)).header == "used"  # made anew


def test_a_damaged_header_of_another_store_is_made_again(own_scratch: Path, sandbox: Sandbox) -> None:
    toolchain = find_toolchain("cpp")
    with HeaderStore(toolchain, sandbox) as first, HeaderStore(toolchain, sandbox) as second:
        path = Path(make(first, program(0)) + ".gch")
        path.write_bytes(path.read_bytes()[:-1])
        make(second, program(0))
        assert second.built == 1


def test_a_header_that_the_compiler_refuses_costs_only_time(own_scratch: Path) -> None:
    with GraderPool(1, quiet=True) as pool:
        assert pool.headers is not None
        path = Path(make(pool.headers, program(0)) + ".gch")
        info = path.stat()
        with path.open("r+b") as file:  # the date stays, so that nothing shows before the compiler looks
            file.write(b"damaged!")
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        assert grade(pool, program(1)).header == "rejected"
        wrong = pool.submit(program(2).replace("puts", "ptus"), ONE).result()
        assert not wrong.compiled and wrong.header == "rejected"


def test_a_compiler_that_makes_no_headers(own_scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: HeaderStore, build: Path) -> Path:
        raise GraderError("cannot write PCH file")

    monkeypatch.setattr(HeaderStore, "_compile", refuse)
    with GraderPool(1, quiet=True) as pool:
        assert pool.headers is not None
        for number in range(4):
            assert grade(pool, program(number)).header == ""
        pool.headers.wait()
        assert "cannot write PCH" in str(pool.describe()["headers"])


def test_no_space_is_left(own_scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GraderPool(1, quiet=True) as pool:
        assert pool.headers is not None
        monkeypatch.setattr(header, "free_bytes", lambda folder: 5 << 20)
        for number in range(3):
            assert grade(pool, program(number)).header == ""
        pool.headers.wait()
        assert "only 5 MB of free space" in str(pool.headers.describe())


def test_closing_does_not_wait_for_a_build(store: HeaderStore) -> None:
    started = threading.Event()
    really = store._started

    def tell(process: subprocess.Popen[bytes]) -> None:
        really(process)
        started.set()

    store._started = tell  # type: ignore[method-assign]
    store.wait()
    source = program(0, "#include <bits/extc++.h>\n#include <bits/stdc++.h>\n")
    for _ in range(2):
        store.shortcuts(source)
    assert started.wait(20)
    folder = store.folder
    store.close()
    assert not folder.exists() and not store.faults


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_sandbox_that_is_ended_while_it_is_set_up_leaves_nothing(tmp_path: Path) -> None:
    """Killed alone, bubblewrap leaves a child in one of twenty rounds that waits for it for ever."""
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--chdir", str(tmp_path)]
    for round_ in range(100):
        process = subprocess.Popen([*command, "sleep", "60"], stderr=subprocess.DEVNULL)
        time.sleep(0.00006 * round_)
        header._end(process)
        process.wait()
    deadline = time.monotonic() + 5  # the kernel takes its time with namespaces

    def left() -> list[int]:
        return [p.pid for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or [])]

    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left()


def test_a_header_that_is_cut_off_is_swept(store: HeaderStore) -> None:
    store.wait()  # it sweeps when it starts: what follows is for the next one
    (store.folder / "build-dead").mkdir()
    (store.folder / "build-dead" / "header.h.gch").write_bytes(b"half")
    with HeaderStore(find_toolchain("cpp"), store._sandbox) as other:
        other.wait()
    assert not (store.folder / "build-dead").exists()
    assert store.describe()["kept"] == 0


def test_a_lease_brings_the_folder_back(store: HeaderStore, own_scratch: Path) -> None:
    shutil.rmtree(own_scratch)
    with HeaderLease(store.folder):
        assert store.folder.is_dir() and own_scratch.stat().st_mode & 0o077 == 0


def test_none_are_made_where_none_are_wanted(own_scratch: Path) -> None:
    with GraderPool(1, quiet=True, header_bytes=0) as pool:
        assert pool.headers is None and pool.describe()["header"] == "none"
        assert {grade(pool, program(n)).header for n in range(3)} == {""}


# ---------------------------------------------------------------------- the lean bits/stdc++.h

WHOLE = "#include <bits/stdc++.h>\nusing namespace std;\n"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        ("int main() { vector<int> v(1); cout << v.size() << endl; }", [True]),
        ('int main() { mutex m; lock_guard<mutex> guard(m); puts("1"); }', []),
        ('int lines, depth, path; int main() { puts("1"); }', [True]),
        ('#define CAT(a, b) a##b\nint main() { CAT(mu, tex) m; m.lock(); puts("1"); }', []),
        ('int main() { mut\\\nex m; m.lock(); puts("1"); }', []),
        ('int main() { if (sizeof(pmr::vector<int>)) puts("1"); }', []),
    ],
)
def test_which_programs_the_lean_header_serves(pool: GraderPool, body: str, kinds: list[bool]) -> None:
    assert pool.headers is not None
    pool.headers.wait()  # for the names
    for number in range(2):
        pool.headers.shortcuts(f"{WHOLE}int x{number};")
    pool.headers.wait()
    assert [s.lean for s in pool.headers.shortcuts(WHOLE + body) if s.lean] == kinds
    grade(pool, WHOLE + body)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["lock", "future"])
def test_the_lean_header_adds_no_freedom(pool: GraderPool, name: str) -> None:
    """A program that clashes with a name of the whole header is refused, as the plain compiler refuses it."""
    source = f"{WHOLE}int {name};\nint main() {{ {name} = 1; cout << {name}; }}"
    assert not pool.submit(source, ONE).result().compiled


def test_names_that_only_the_whole_header_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = lean_header(find_toolchain("cpp")).names
    assert {"mutex", "regex", "thread", "async", "lock", "filesystem", "pmr", "this_thread", "_GLIBCXX_MUTEX"} <= names
    assert {"chrono", "mt19937", "valarray", "slice", "atomic", "from_chars"} <= names
    ordinary = (
        "vector map sort priority_queue cin string line path add limit int class lower_bound gcd __gcd unordered_map"
    )
    assert names.isdisjoint(
        [*ordinary.split(), "__builtin_popcount", "__int128", "cerr", "setprecision", "shared_ptr", "bitset", "_"]
    )


def test_a_damaged_list_of_names_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLORA_CACHE", str(tmp_path))
    found = []

    def find(*_: object) -> frozenset[str]:
        found.append(1)
        return frozenset({"mutex"})

    monkeypatch.setattr(lean, "_names_left_out", find)
    assert lean_header(find_toolchain("cpp")).names == lean_header(find_toolchain("cpp")).names == {"mutex"}
    (path,) = tmp_path.glob("*/names-*")
    path.write_text(path.read_text().replace("mutex", "metux"))
    assert lean_header(find_toolchain("cpp")).names == {"mutex"} and len(found) == 2


def test_a_compiler_without_the_header_has_no_lean_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "fatal error: bits/stdc++.h: No such file or directory")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(GraderError, match="has no bits/stdc"):
        lean_header(find_toolchain("cpp"))
