"""Where a program's prologue ends, and that nothing but its lines is taken from a program."""

from __future__ import annotations

import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.grader.prologue import USING, behind, read_prologue
from tests.rewards.grader.programs import beginnings, bodies, program


def includes(*names: str) -> tuple[str, ...]:
    return tuple(f"#include <{name}>" for name in names)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("#include <map>\n#include<set>\nint x;", includes("map", "set")),
        ("// a\n\n/* b\n#include <list>\n*/\n#include <map>\n#include <set> // c\n", includes("map", "set")),
        ('\ufeff# include\t<map>\r\n#include "set"\r\n', includes("map", "set")),
        ("#include <map>\nusing namespace std;\n#include <set>\n", (*includes("map"), USING, *includes("set"))),
        ("#include <map>\nusing namespace std;\nint x;", includes("map")),
        ("using namespace std;\n#include <map>\n", ()),
        ("#include <map>\n#include <conio.h>\n#include <set>\n", includes("map")),
        ("#include <map>\n#define int long\n#include <set>\n", includes("map")),
        ("#include <map>\n#if 0\n#include <set>\n#endif\n", includes("map")),
        ("#include <map> junk\n", ()),
        ("#include <map> /* a */\n#include <set>\n", ()),
        ("/* a */ #include <map>\n", ()),
        ('#pragma GCC optimize("O3")\n#include <map>\n', ()),
        ("#include <map>\n// a \\\n#include <set>\n", includes("map")),
        ("#include <map>\n// a ??/\n#include <set>\n", includes("map")),
        ("#include <map>\n/* a *\\\n/ int x; /* */\n#include <set>\n", includes("map")),
        ("#include <map>\n/* a */ int x;\n#include <set>\n", includes("map")),
        ("#include <map>\n/* a", includes("map")),
        ("#include <map>", ()),  # no line end: nothing follows either
        ("#import <map>\n", ()),
        ("#include_next <map>\n", ()),
        ("#include <../map>\n", ()),
        ("", ()),
    ],
)
def test_lines(source: str, lines: tuple[str, ...]) -> None:
    assert read_prologue(source).includes == lines


def preprocessed(source: str) -> tuple[int, str]:
    """What is left of a program after the preprocessor, without the marks of lines."""
    command = ["g++", "-std=c++17", "-E", "-P", "-w", "-x", "c++", "-"]
    done = subprocess.run(command, input=source.encode(), capture_output=True, check=False)
    return done.returncode, " ".join(done.stdout.decode(errors="replace").split())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(lines=beginnings, text=bodies)
def test_the_prologue_and_the_rest_are_the_program(lines: list[str], text: str) -> None:
    source = program(lines, text)
    prologue = read_prologue(source)
    front = "".join(f"{line}\n" for line in prologue.texts)
    rest = prologue.without(prologue.lines)
    assert rest.count("\n") == source.count("\n")
    assert preprocessed(f'{front}#line 1 "<stdin>"\n{rest}') == preprocessed(source)


def test_a_program_behind_lines_that_it_has() -> None:
    head = "/* a task */\n#include <stdio.h>\nusing namespace std;\n"
    source = "#include<stdio.h>\n#include <map>\nusing namespace std;\nint main() {}\n"
    assert behind(head, source) == head + "\n#include <map>\n\nint main() {}\n"
    assert behind(head, "int main() {}") == head + "int main() {}"


@pytest.mark.parametrize(
    "text", ["#include <map>\n", "/*", "/**/\n", "// \\\n", "#include <", "using namespace std;\n", "\n"]
)
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 3))
def test_long_texts_are_read_in_time(text: str, times: int) -> None:
    start = time.process_time()
    read_prologue(text * (100_000 * times // len(text)))
    assert time.process_time() - start < 2.0
