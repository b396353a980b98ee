"""From a completion to a program's source.

The rule, in this order, always outside thinking blocks:

    fence     the last complete fence labelled with the language (```cpp, ```c++, ```cc, ```cxx, ```C++)
    any       the last complete fence of any label
    include   from the first `#include` on (C and C++ only): a completion without fences, or cut off inside one
    none      no code

A thinking block is `<think>...</think>`. Without its end it lasts to the end of the completion; without its beginning
(a chat template that already opened it) it starts at the beginning. Inside a fence the tags are text.

A C or C++ program that redirects its standard streams would read files that do not exist here, so every call
`freopen(path, mode, stream)` is replaced by the expression `(stream)`, its value where it succeeds. Statements around
it keep their meaning: `if(freopen(...)) x();` still guards `x()`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LABELS: dict[str, frozenset[str]] = {
    "cpp": frozenset({"cpp", "c++", "cc", "cxx", "c++11", "c++14", "c++17", "c++20", "cpp17", "cpp20"}),
    "c": frozenset({"c", "c99", "c11", "c17"}),
    "python": frozenset({"python", "python3", "py"}),
    "q": frozenset({"q", "kdb", "k"}),
}
_C_FAMILY = frozenset({"cpp", "c"})

_FENCE = re.compile(r"^ {0,3}(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>[^\n`]*)$")
_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include\b", re.MULTILINE)
_THINK = re.compile(r"<(/?)think>")


@dataclass(frozen=True, slots=True)
class Extraction:
    """`rule` is one of fence, any, include, none; `source` is None for none."""

    source: str | None
    rule: str


@dataclass(frozen=True, slots=True)
class _Fence:
    label: str
    body: str


def extract_source(completion: str, language: str = "cpp") -> str | None:
    """The program in a completion, or None. Line ends become `\\n`."""
    return extract(completion, language).source


def extract(completion: str, language: str = "cpp") -> Extraction:
    """As `extract_source`, with the rule that found it."""
    text = _without_thinking(completion.replace("\r\n", "\n").replace("\r", "\n"))
    fences = [fence for fence in _fences(text) if fence.body.strip()]
    labels = LABELS.get(language, frozenset({language}))
    labelled = [fence for fence in fences if fence.label in labels]
    if labelled:
        return Extraction(_clean(labelled[-1].body, language), "fence")
    if fences:
        return Extraction(_clean(fences[-1].body, language), "any")
    if language in _C_FAMILY and (found := _INCLUDE.search(text)):
        body = text[found.start() :].split("```")[0]  # of a fence that was never opened, or closed inside a line
        return Extraction(_clean(body, language), "include")
    return Extraction(None, "none")


def _clean(source: str, language: str) -> str:
    return replace_freopen(source) if language in _C_FAMILY else source


def _label(info: str) -> str:
    words = info.strip().strip("{}").lstrip(".").split()
    return words[0].rstrip(",:").lower() if words else ""


def _closes(line: str, marks: str) -> bool:
    stripped = line.strip()
    return len(stripped) >= len(marks) and set(stripped) == {marks[0]} and not line.startswith("    ")


def _without_thinking(text: str) -> str:
    """Cut the thinking blocks out; tags inside a fence that is outside of thinking stay."""
    first = _THINK.search(text)
    if first and first.group(1) and not _inside_fence(text, first.start()):
        text = text[first.end() :]  # the template opened the block, the completion only closes it
    kept: list[str] = []
    marks = ""
    thinking = False
    for line in text.split("\n"):
        if marks and not thinking:
            kept.append(line)
            if _closes(line, marks):
                marks = ""
            continue
        outside = []
        position = 0
        for tag in _THINK.finditer(line):
            if not thinking:
                outside.append(line[position : tag.start()])
            thinking = not tag.group(1)
            position = tag.end()
        if not thinking:
            outside.append(line[position:])
        rest = "".join(outside)
        if not thinking and (opened := _FENCE.match(rest)):
            marks = opened["marks"]
        if rest or not thinking:
            kept.append(rest)
    return "\n".join(kept)


def _inside_fence(text: str, position: int) -> bool:
    """Whether the position lies in a fence that is closed after it."""
    marks = ""
    start = 0
    for line in text.split("\n"):
        end = start + len(line)
        if marks and _closes(line, marks):
            if position < start:
                return True
            marks = ""
        elif not marks and start <= position and (opened := _FENCE.match(line)):
            marks = opened["marks"]
        if not marks and end >= position:
            return False
        start = end + 1
    return False


def _fences(text: str) -> Iterator[_Fence]:
    """All complete fences, in order (CommonMark: closed by at least as many of the same marks, alone on a line).

    Unlike in CommonMark, a labelled opening inside a fence starts anew: a model that forgot to close the first.
    """
    label, marks = "", ""
    body: list[str] = []
    for line in text.split("\n"):
        if marks:
            if _closes(line, marks):
                yield _Fence(label, "\n".join(body) + "\n")
                marks = ""
                continue
            opened = _FENCE.match(line)
            if not (opened and opened["marks"] == marks and _label(opened["info"])):
                body.append(line)
                continue
            marks = ""
        if opened := _FENCE.match(line):
            label, marks, body = _label(opened["info"]), opened["marks"], []


# What must not be searched for calls: comments, raw strings, strings, characters. One without an end lasts to the end
# of the text or the line, and a character is short, so a degenerate text is read once and not once for each quote.
_LITERALS = "|".join(
    (
        r"//(?:\\\n|[^\n])*",
        r"/\*.*?(?:\*/|\Z)",
        r'\bR"(?P<d>[^()\s\\]{0,16})\(.*?(?:\)(?P=d)"|\Z)',
        r'"(?:\\.|[^"\\\n])*"?',
        r"'(?:\\.|[^'\\\n]){0,12}'",
    )
)
LITERALS = re.compile(_LITERALS, re.DOTALL)
_STEP = re.compile(rf"(?P<skip>{_LITERALS})|[][(){{}},]", re.DOTALL)
_MAX_ARGUMENTS = 400  # characters; of a call that is not closed within them, nothing is replaced
_CALL = re.compile(rf"(?P<skip>{_LITERALS})|(?P<call>(?:(?:\bstd\s*)?::\s*)?\bfreopen\s*\()", re.DOTALL)


def replace_freopen(source: str) -> str:
    """Replace each call `freopen(a, b, stream)` by `(stream)`; strings, comments and member calls stay as they are."""
    parts: list[str] = []
    position = 0
    while found := _CALL.search(source, position):
        end = found.end()
        if found["skip"] is None:
            arguments, after = _arguments(source, end)
            is_member = source[: found.start()].rstrip().endswith((".", "->"))
            if arguments is not None and len(arguments) == 3 and not is_member:
                parts += [source[position : found.start()], "(", replace_freopen(arguments[2].strip()), ")"]
                position = after
                continue
        parts.append(source[position:end])
        position = end
    return "".join([*parts, source[position:]])


def _arguments(source: str, start: int) -> tuple[list[str] | None, int]:
    """The arguments of a call whose parenthesis opened just before `start`, and the index after the closing one."""
    arguments: list[str] = []
    depth = 0
    begin = start
    for found in _STEP.finditer(source, start, start + _MAX_ARGUMENTS):
        char = found.group()
        if found["skip"] is not None:
            continue
        if char in "([{":
            depth += 1
        elif char in ")]}":
            if depth == 0:
                return [*arguments, source[begin : found.start()]], found.end()
            depth -= 1
        elif depth == 0:
            arguments.append(source[begin : found.start()])
            begin = found.end()
    return None, start
