"""The library's functions that stand apart from precompiled headers: what they do, and that nothing else changes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rewards.grader import apart
from rewards.grader import scratch as storage
from rewards.grader.apart import PREFIX, Part, _edited, _Edition, part_apart
from rewards.grader.header import HeaderStore
from rewards.grader.pool import GraderPool
from rewards.grader.sandbox import choose_sandbox
from rewards.grader.toolchains import find_toolchain
from rewards.problem import Problem, Test
from rewards.verdict import Status

WHOLE = "#include <bits/stdc++.h>\nusing namespace std;\n"
ONE = Problem("one", "", (Test("", "1\n"),))
USES = r"""
template <class F> void caught(F f) {
    try { cout << f(); } catch (const invalid_argument &e) { cout << "invalid " << e.what(); }
    catch (const out_of_range &e) { cout << "range " << e.what(); }
    cout << '\n';
}
template <class T> void extremes() {
    cout << to_string(numeric_limits<T>::lowest()) << ' ' << to_string(numeric_limits<T>::max()) << '\n';
    for (wchar_t c : to_wstring(numeric_limits<T>::max())) cout << char(c);
    cout << '\n';
}
int main() {
    extremes<int>(), extremes<unsigned>(), extremes<long>(), extremes<unsigned long>(), extremes<long long>();
    extremes<unsigned long long>(), extremes<float>(), extremes<double>(), extremes<long double>();
    cout << to_string('a') << to_string(true) << to_string(short(-3)) << '\n';
    size_t end = 9;
    for (string s : {"12ab", "-7", "", "x", "99999999999", "0x1f", " 5", "1e400", "nan"}) {
        caught([&] { return stoi(s, &end); }), cout << end << '\n';
        caught([&] { return stoi(s, nullptr, 16); }), caught([&] { return stol(s); }), caught([&] { return stoul(s); });
        caught([&] { return stoll(s, &end, 0); }), caught([&] { return stoull(s); }), caught([&] { return stof(s); });
        caught([&] { return stod(s, &end); }), cout << end << '\n', caught([&] { return stold(s); });
        wstring w(s.begin(), s.end());
        caught([&] { return stoi(w); }), caught([&] { return stold(w); }), caught([&] { return stoull(w, &end, 8); });
    }
    auto text = "a\0b"s;
    cout << text.size() << L"wide"s.size() << u"six"s.size() << U"thirty"s.size() << (text + "c"s == "a\0bc"s) << '\n';
    int (*pointer)(const string &, size_t *, int) = &stoi;
    string (*other)(int) = to_string;
    cout << pointer("41", nullptr, 10) + 1 << other(7) << noexcept(to_string(1)) << noexcept(stoi("")) << '\n';
    // more
    cout << setprecision(17) << betaf(1.5f, 2) << ' ' << beta(1.5, 2) << ' ' << betal(1.5L, 2) << ' '
         << riemann_zetaf(3) << ' ' << legendref(3, 0.5f) << ' ' << hermitel(3, 0.5L) << ' ' << expintl(2) << '\n';
}
"""


REGEX = r"""
    smatch found;
    string words = "one 22 three, 4";
    const regex parts("[a-z]+|(\\d+)");
    for (sregex_iterator it(words.begin(), words.end(), parts), none; it != none; ++it)
        cout << it->str() << it->position() << (*it)[1].matched;
    cout << regex_replace(words, regex("(\\w)(\\w*)"), "$2-$1") << regex_match("2026-11", regex(R"(\d{4}-\d\d)"))
         << regex_search(words, found, regex("(T)h", regex::icase)) << found.prefix() << found[1] << '\n';
    try { regex("["); } catch (const regex_error &e) { cout << "regex " << e.code() << e.what() << '\n'; }
"""


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(1, quiet=True) as pool:
        assert pool.headers is not None
        for number in range(2):
            pool.headers.shortcuts(f"{WHOLE}int x{number};")
            pool.headers.shortcuts(f"{WHOLE}mutex x{number};")
        pool.headers.wait()
        for number in range(2, 4):  # now that it is known which of the two headers serves which
            pool.headers.shortcuts(f"{WHOLE}int x{number};")
            pool.headers.shortcuts(f"{WHOLE}mutex x{number};")
        pool.headers.wait()
        yield pool


def calls(part: Part) -> set[int]:
    return {int(number) for number in re.findall(rf"return {PREFIX}(\d+)\(", part.text)}


def test_every_function_that_the_headers_call_is_in_the_archive(tmp_path: Path) -> None:
    for name in ("bits/basic_string.h", "bits/specfun.h"):
        part = part_apart(find_toolchain("cpp"), name)
        assert part is not None and len(calls(part)) > 30
        part.write(tmp_path / "apart")
        (tmp_path / "all.cpp").write_text("#include <string>\n#include <cmath>\n")
        # With -fkeep-inline-functions every call of the headers is a symbol to be linked.
        command = ["g++", "-std=c++17", "-w", "-isystem", "apart", "-fkeep-inline-functions", "-c", "all.cpp"]
        subprocess.run(command, cwd=tmp_path, check=True)
        wanted, had = (
            {word for word in out.split() if PREFIX in word}
            for out in (
                subprocess.run(["nm", kind, file], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
                for kind, file in (("-u", "all.o"), ("--defined-only", str(part.archive)))
            )
        )
        assert len(wanted) > 30 and wanted <= had
        (tmp_path / "apart" / name).unlink()


@pytest.mark.parametrize("more", ["", REGEX], ids=["lean", "whole"])
def test_a_program_does_the_same_with_functions_apart(pool: GraderPool, tmp_path: Path, more: str) -> None:
    source = WHOLE + USES.replace("// more", more)
    (tmp_path / "plain.cpp").write_text(source)
    subprocess.run(["g++", "-O2", "-std=c++17", "-w", "plain.cpp", "-o", "plain"], cwd=tmp_path, check=True)
    expected = subprocess.run([tmp_path / "plain"], capture_output=True, text=True, check=True).stdout
    assert expected.count("\n") > 120 and "invalid stoi" in expected and "range stof" in expected
    verdict = pool.submit(source, Problem("uses", "", (Test("", expected),))).result(60)
    assert verdict.accepted and verdict.header == "used", verdict


@pytest.mark.parametrize(
    "source",
    [
        "namespace std { inline namespace __cxx11 { string to_string(int) { return {}; } } }\nint main() {}",
        "string std::to_string(int) { return {}; }\nint main() {}",
        "float std::betaf(float, float) { return 0; }\nint main() {}",
        f"int main() {{ string s; return std::{PREFIX}0(s, nullptr, 10); }}",
    ],
)
def test_no_program_gains_a_freedom(pool: GraderPool, source: str) -> None:
    verdict = pool.submit(WHOLE + source, ONE).result(60)
    assert verdict.status is Status.COMPILE_ERROR, verdict


def test_messages_name_the_library_and_its_lines(pool: GraderPool, tmp_path: Path) -> None:
    source = WHOLE + "struct S {};\nint main() { return stoi(S()); }\n"
    verdict = pool.submit(source, ONE).result(60)
    (tmp_path / "main.cpp").write_text(source)
    plain = subprocess.run(
        ["g++", "-O2", "-std=c++17", "-w", "main.cpp"], cwd=tmp_path, capture_output=True, text=True, check=False
    ).stderr
    places = re.findall(r"basic_string\.h:\d+", plain)
    assert places and re.findall(r"\S*basic_string\.h:\d+", verdict.diagnostics) == re.findall(
        r"\S*basic_string\.h:\d+", plain
    )


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_an_archive_that_was_damaged_is_not_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(storage, "SHARED_MEMORY", tmp_path)
    program = "#include <string>\n#include <cstdio>\nint main() {{ puts(std::to_string(1).c_str()); return 0 * {}; }}\n"
    with GraderPool(1, quiet=True) as pool:
        assert pool.headers is not None
        for number in (1, 2):
            pool.headers.shortcuts(program.format(number))
        pool.headers.wait()
        assert pool.submit(program.format(3), ONE).result(60).header == "used"
        archive = next(pool.headers.folder.glob("*.a"))
        archive.write_bytes(b"") if damage == "cut" else archive.unlink()
        verdict = pool.submit(program.format(4), ONE).result(60)
        assert verdict.accepted and verdict.header == ""


def test_stores_that_start_together_link_the_same_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SHARED_MEMORY", tmp_path)
    source = "#include <string>\nint main() { return std::stoi(std::string()); }\n"
    with ExitStack() as stack:
        stores = [stack.enter_context(HeaderStore(find_toolchain("cpp"), choose_sandbox()[0])) for _ in range(6)]
        for store in stores:
            for _ in range(2):
                store.shortcuts(source)
            store.wait()
        found = {store.shortcuts(source)[0].archives for store in stores}
        assert len(found) == 1 and len(found.pop()) == 3


@pytest.mark.parametrize("standard", ["c++11", "c++14", "c++20", "c++23"])
def test_other_standards_have_functions_apart(standard: str) -> None:
    part = part_apart(find_toolchain("cpp", "g++", standard), "bits/basic_string.h")
    assert part is not None and len(calls(part)) >= 30
    special = part_apart(find_toolchain("cpp", "g++", standard), "bits/specfun.h")
    assert (special is None) == (standard in ("c++11", "c++14"))


def test_a_damaged_archive_of_the_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLORA_CACHE", str(tmp_path))
    first = part_apart(find_toolchain("cpp"), "bits/basic_string.h")
    assert first is not None
    whole = first.archive.read_bytes()
    first.archive.write_bytes(whole[:1000])
    second = part_apart(find_toolchain("cpp"), "bits/basic_string.h")
    assert second is not None and second.archive.read_bytes() == whole


def test_a_library_that_is_not_as_expected_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SHARED_MEMORY", tmp_path)
    monkeypatch.setenv("TINYLORA_CACHE", str(tmp_path))
    monkeypatch.setitem(apart.FILES, "regex", _Edition("regex", instances=("class __detail::_Another<char>",)))
    program = "#include <regex>\n#include <cstdio>\nint main() {{ puts(\"1\"); return 0 * {}; }}\n"
    with GraderPool(1, quiet=True) as pool:
        assert pool.headers is not None
        for number in (1, 2):
            pool.headers.shortcuts(program.format(number))
        pool.headers.wait()
        assert "does not take our edition of <regex>" in pool.headers.faults["<regex> apart"]
        verdict = pool.submit(program.format(3), ONE).result(60)
        assert verdict.accepted and verdict.header == "used"


def test_what_does_not_look_as_expected_stays() -> None:
    text = """\
// numbers
  inline string
  to_string(int __val)
  { if (__val) { return {}; }
    return f(__val); }

  template<typename T>
  inline string
  to_string(T __val)
  { return g(__val); }

  inline string
  to_string(int (*f)(int))
  { return {}; }

  inline string
  other(int __val)
  { return {}; }

  CONSTEXPR
  inline string
  to_string(long __val = 3, char __c = 'c')
  { return {}; }
"""
    edition = _Edition("string", functions=("to_string",))
    header, definitions = _edited(text, edition, constexpr_strings=True)
    assert header.count(f"return {PREFIX}") == 1 and header.count("\n") == text.count("\n")
    assert f"string {PREFIX}0(int __val) {{ return to_string(__val); }}" in definitions
    header, _ = _edited(text, edition, constexpr_strings=False)
    assert f"string {PREFIX}3(long __val, char __c); return {PREFIX}3(__val, __c);" in header
    assert "to_string(long __val = 3, char __c = 'c')" in header
    assert _edited(text, _Edition("string"), constexpr_strings=False) == (text, text)
