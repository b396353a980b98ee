"""The prologue of a C++ program: the `#include` lines of standard headers that it begins with.

Between them may stand blank lines, comments and `using namespace std;`. The text is read line by line, and reading ends
at the first line that is not certainly one of these: another directive, a line continuation, code. A prologue is thus a
prefix of the program, and a header made of its lines, put before the rest, is the same program: no line is moved,
nothing is seen that the program did not include (`rewards/grader/header.py` builds on that).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

USING = "using namespace std;"
_CPP = """
algorithm any array atomic barrier bit bitset charconv chrono codecvt compare complex concepts condition_variable
coroutine deque exception execution expected filesystem format forward_list fstream functional future initializer_list
iomanip ios iosfwd iostream istream iterator latch limits list locale map mdspan memory memory_resource mutex new
numbers numeric optional ostream print queue random ranges ratio regex scoped_allocator semaphore set shared_mutex
source_location span spanstream sstream stack stacktrace stdexcept stdfloat stop_token streambuf string string_view
strstream syncstream system_error thread tuple type_traits typeindex typeinfo unordered_map unordered_set utility
valarray variant vector version
"""
_C = """
assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg stdbool stddef
stdint stdio stdlib string tgmath time uchar wchar wctype
"""
_OTHERS = """
bits/stdc++.h bits/extc++.h ext/pb_ds/assoc_container.hpp ext/pb_ds/tree_policy.hpp ext/pb_ds/priority_queue.hpp
ext/rope unistd.h malloc.h memory.h sys/time.h sys/types.h
"""
HEADERS = frozenset(
    [*_CPP.split(), *_OTHERS.split(), *(f"c{name}" for name in _C.split()), *(f"{name}.h" for name in _C.split())]
)

# A backslash, or its trigraph, at the end of a line joins the next one to it.
SPLICE = re.compile(r"(?:\\|\?\?/)[ \t\v\f\r]*\n")
_END = r"[ \t]*(?://[^\r\n\0]*)?\r?\n"
_BLANK = re.compile(_END)
_INCLUDE = re.compile(r'[ \t]*#[ \t]*include[ \t]*(?:<([\w./+]+)>|"([\w./+]+)")' + _END)
_USING = re.compile(r"[ \t]*using[ \t]+namespace[ \t]+std[ \t]*;" + _END)
_COMMENT = re.compile(r"[ \t]*/\*")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a prologue as `text` in one spelling, and where it stands in the program."""

    text: str
    start: int
    end: int  # behind its line end


@dataclass(frozen=True, slots=True)
class Prologue:
    """The prologue of `source`. `lines` begins with an include and may end with `using namespace std;`."""

    source: str
    lines: tuple[Line, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(line.text for line in self.lines)

    @property
    def includes(self) -> tuple[str, ...]:
        """The lines up to the last include."""
        texts = self.texts
        while texts and texts[-1] == USING:
            texts = texts[:-1]
        return texts

    def without(self, lines: Sequence[Line]) -> str:
        """The program with these lines emptied; the others keep their numbers."""
        parts, at = [], 0
        for line in lines:
            parts += [self.source[at : line.start], "\n"]
            at = line.end
        return "".join([*parts, self.source[at:]])


def read_prologue(source: str) -> Prologue:
    """The prologue of a C++ program, without lines where it has none."""
    splice = SPLICE.search(source)
    limit = source.rfind("\n", 0, splice.start()) + 1 if splice else len(source)
    lines: list[Line] = []
    at = 1 if source.startswith("\ufeff") else 0
    while at < limit:
        if (found := _INCLUDE.match(source, at, limit)) and (name := found[1] or found[2]) in HEADERS:
            lines.append(Line(f"#include <{name}>", at, found.end()))
            at = found.end()
        elif lines and (found := _USING.match(source, at, limit)):
            lines.append(Line(USING, at, found.end()))
            at = found.end()
        elif found := _BLANK.match(source, at, limit):
            at = found.end()
        elif (found := _COMMENT.match(source, at, limit)) and (end := source.find("*/", found.end(), limit)) >= 0:
            if not (found := _BLANK.match(source, end + 2, limit)):
                break
            at = found.end()
        else:
            break
    return Prologue(source, tuple(lines))


def behind(head: str, source: str) -> str:
    """`source` behind `head`, without those lines of its prologue that `head` begins with, too.

    A standard header may be included in any order and any number of times (C++17 [using.headers]), so this is the
    program that has them twice.
    """
    source = source.removeprefix("\ufeff")
    front, own = read_prologue(head), read_prologue(source)
    return head + own.without([line for line in own.lines if line.text in front.texts])
