"""From a completion to a program's source.

The rule, in this order, always outside thinking blocks:

    fence     the last complete fence labelled with the language (```cpp, ```c++17, ```cpp:main.cpp, ```C/C++)
    open      what follows the last such label, if it is a whole program (C and C++ only): the fence begins or ends
              within a line, or has no end
    any       the last complete fence of any label; for C and C++ the last that looks like a program, if one does
    include   from the first `#include` on (C and C++ only): a completion without fences, or cut off inside one
    none      no code

C++ may be labelled as C where nothing is labelled as C++. Of several fences of C or C++ the last that defines the
wanted function counts, if one does: a program is often followed by an example of its use.

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
from os.path import commonprefix

LABELS: dict[str, frozenset[str]] = {  # without versions
    "cpp": frozenset({"cpp", "c++", "cc", "cxx", "gnu++", "c/c++", "c/cpp"}),
    "c": frozenset({"c", "gnu"}),
    "python": frozenset({"python", "py"}),
    "q": frozenset({"q", "kdb", "k"}),
}
_C_FAMILY = frozenset({"cpp", "c"})

# A fence may stand in a list or a quotation. No two parts of a pattern take the same text: that would be slow.
_FENCE = re.compile(r"^(?P<indent>[ \t>]*)(?P<marks>`{3,}|~{3,}(?!~))(?P<info>[^\n`]*)$")
_OPENING = re.compile(r"(?<![`~])(?P<marks>`{3,}|~{3,})(?P<info>[^\n`~]*)\n")
_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include\b", re.MULTILINE)
_END = re.compile(r"```|~~~|(?:^|(?<=[;}]))[ \t]*</", re.MULTILINE)  # of a fence or an HTML element
_LABEL_END = re.compile(r"[\s:,{]")
_VERSION = re.compile(r"[-_]?[0-9][0-9a-z.]*$")
_THINK = re.compile(r"<(/?)think>")


@dataclass(frozen=True, slots=True)
class Extraction:
    """`rule` is one of fence, open, any, include, none; `source` is None for none."""

    source: str | None
    rule: str


@dataclass(frozen=True, slots=True)
class _Fence:
    label: str
    body: str


def extract_source(completion: str, language: str = "cpp", function: str = "main") -> str | None:
    """The program in a completion, or None. Line ends become `\\n`. function: what a C or C++ program must define."""
    return extract(completion, language, function).source


def extract(completion: str, language: str = "cpp", function: str = "main") -> Extraction:
    """As `extract_source`, with the rule that found it."""
    text = _without_thinking(completion.replace("\r\n", "\n").replace("\r", "\n"))
    family = ("cpp", "c") if language == "cpp" else (language,)
    wanted = [LABELS.get(name, frozenset({name})) for name in family]
    fences = [fence for fence in _fences(text, frozenset().union(*wanted), language) if fence.body.strip()]
    for labels in wanted:
        if labelled := [fence for fence in fences if fence.label in labels]:
            return Extraction(_clean(_last(labelled, language, function), language), "fence")
        if language in _C_FAMILY and (body := _open_fence(text, labels)):
            return Extraction(_clean(body, language), "open")
    if fences:
        programs = [fence for fence in fences if "{" in fence.body or _INCLUDE.search(fence.body)]
        if language not in _C_FAMILY or not programs:
            programs = fences
        return Extraction(_clean(_last(programs, language, function), language), "any")
    if language in _C_FAMILY and (found := _INCLUDE.search(text)):
        body = _END.split(text[found.start() :], maxsplit=1)[0]  # its fence was not opened, or closed inside a line
        return Extraction(_clean(body, language), "include")
    return Extraction(None, "none")


def _last(fences: list[_Fence], language: str, function: str) -> str:
    """The last body that defines the function, or else the last."""
    if language in _C_FAMILY and len(fences) > 1:
        fences = [fence for fence in fences if function in functions(fence.body)] or fences
    return fences[-1].body


def _clean(source: str, language: str) -> str:
    return replace_freopen(source) if language in _C_FAMILY else source


def _label(info: str) -> str:
    word = _LABEL_END.split(info.strip().strip("{}").lstrip("."), maxsplit=1)[0]
    return _VERSION.sub("", word[:30].lower())


def _without_indent(line: str, indent: str) -> str:
    """The line without its fence's indent, or without as much of it as it has."""
    return line[len(commonprefix([line, indent])) :]


def _closes(line: str, opened: re.Match[str]) -> bool:
    line, marks = _without_indent(line, opened["indent"]), opened["marks"]
    stripped = line.strip()
    return len(stripped) >= len(marks) and set(stripped) == {marks[0]} and not line.startswith("    ")


def _without_thinking(text: str) -> str:
    """Cut the thinking blocks out; tags inside a fence that is outside of thinking stay."""
    first = _THINK.search(text)
    if first and first.group(1) and not _inside_fence(text, first.start()):
        text = text[first.end() :]  # the template opened the block, the completion only closes it
    kept: list[str] = []
    opened: re.Match[str] | None = None
    thinking = False
    for line in text.split("\n"):
        if opened and not thinking:
            kept.append(line)
            if _closes(line, opened):
                opened = None
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
        opened = None if thinking else _FENCE.match(rest)
        if rest or not thinking:
            kept.append(rest)
    return "\n".join(kept)


def _inside_fence(text: str, position: int) -> bool:
    """Whether the position lies in a fence that is closed after it."""
    opened: re.Match[str] | None = None
    start = 0
    for line in text.split("\n"):
        end = start + len(line)
        if opened and _closes(line, opened):
            if position < start:
                return True
            opened = None
        elif not opened and start <= position:
            opened = _FENCE.match(line)
        if not opened and end >= position:
            return False
        start = end + 1
    return False


def _fences(text: str, wanted: frozenset[str], language: str) -> Iterator[_Fence]:
    """All complete fences, in order (CommonMark: closed by at least as many of the same marks, alone on a line).

    Unlike in CommonMark, a labelled opening inside a fence starts anew: a model forgot to close the first, which counts
    if it is of the language and the second is not (the program, and then its tests in another language).
    """
    opened: re.Match[str] | None = None
    body: list[str] = []
    for line in text.split("\n"):
        if opened:
            label, indent, marks = _label(opened["info"]), opened["indent"], opened["marks"]
            inner = _FENCE.match(_without_indent(line, indent))
            anew = inner and len(inner["indent"]) < 4 and inner["marks"] == marks and _label(inner["info"])
            closed = _closes(line, opened)
            if not anew and not closed:
                body.append(_without_indent(line, indent))
                continue
            if closed or (label in wanted and anew not in wanted):
                source = "\n".join(body) + "\n"
                yield _Fence(label, _up_to(marks, source) if language in _C_FAMILY else source)
            if closed:
                opened = None
                continue
        opened, body = _FENCE.match(line), []


def _open_fence(text: str, labels: frozenset[str]) -> str | None:
    """What follows the last opening with such a label, wherever it stands in its line; None where that is cut off."""
    found = None
    for opening in _OPENING.finditer(text):
        if _label(opening["info"]) in labels:
            found = opening
    if found is None:
        return None
    before = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
    indent = before[: len(before) - len(before.lstrip(" \t>"))]
    lines = (_without_indent(line, indent) for line in text[found.end() :].split("\n"))
    body = _up_to(found["marks"], "\n".join(lines))
    code = blanked(body).rstrip()
    return body if "}" in code and code.endswith(("}", ";")) and depths(code)[0] <= 0 else None


def _up_to(marks: str, source: str) -> str:
    """C or C++ source up to a fence's marks, which are no part of the language."""
    end = blanked(source).find(marks)
    return source if end < 0 else source[:end]


# What must not be searched for calls: comments, raw strings, strings, the separators of digits, characters. One without
# an end lasts to the end of the text or the line, and a character is short, so a degenerate text is read once and not
# once for each quote.
_LITERALS = "|".join(
    (
        r"//(?:\\\n|[^\n])*",
        r"/\*.*?(?:\*/|\Z)",
        r'\b(?:u8|[uUL])?R"(?P<d>[^()\s\\]{0,16})\(.*?(?:\)(?P=d)"|\Z)',
        r'"(?:\\.|[^"\\\n])*"?',
        r"(?<=[0-9])(?<!u8)'(?=[0-9a-fA-F])",
        r"'(?:\\.|[^'\\\n]){0,12}'",
    )
)
LITERALS = re.compile(_LITERALS, re.DOTALL)
_BLANKED = re.compile(rf"(?P<skip>{_LITERALS})|<%|%>", re.DOTALL)
_STEP = re.compile(rf"(?P<skip>{_LITERALS})|[][(){{}},]", re.DOTALL)
_PARENTHESES = r"\((?:[^(){};]|\([^(){};]*\))*\)"
_FUNCTION = re.compile(  # the result behind an arrow is short, so a chain of calls is read once
    rf"\b(\w+)\s*{_PARENTHESES}(?:\s*(?:const|noexcept|override|final|try)\b)*"
    r"(?:\s*->(?:[^(){};=]|\([^(){};]{0,100}\)){1,100})?\s*\{"
)
_MAX_ARGUMENTS = 400  # characters; of a call that is not closed within them, nothing is replaced
_CALL = re.compile(rf"(?P<skip>{_LITERALS})|(?P<call>(?:(?:\bstd\s*)?::\s*)?\bfreopen\s*\()", re.DOTALL)


def blanked(source: str) -> str:
    """C or C++ source with spaces for literals and comments and with braces for their digraphs, of the same length."""

    def blank(found: re.Match[str]) -> str:
        if found["skip"] is None:
            return " {" if found[0] == "<%" else " }"
        return re.sub(r"[^\n]", " ", found[0])

    return _BLANKED.sub(blank, source)


def depths(source: str) -> tuple[int, int]:
    """How many braces are open at the end of C or C++ source, and where the fewest are; below 0 for those of others."""
    depth = lowest = 0
    for brace in re.findall(r"[{}]", blanked(source)):
        depth += 1 if brace == "{" else -1
        lowest = min(lowest, depth)
    return depth, lowest


def functions(source: str) -> list[str]:
    """The names of the functions that C or C++ source defines outside of any braces; one may still be open."""
    outside, depth = [], 0
    for piece in re.split(r"([{}])", blanked(source)):
        if piece == "{":
            outside.append("{" if depth == 0 else "")
            depth += 1
        elif piece == "}":
            depth = max(0, depth - 1)
            outside.append(";" if depth == 0 else "")
        elif depth == 0:
            outside.append(piece)
    return _FUNCTION.findall("".join(outside))


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
