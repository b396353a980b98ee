"""The notation in which families write their programs, and its translation to C++ in a given style.

A sketch is C++ with braces on the same line, plus statements that every style spells in its own way:

    in x, y;            declare two numbers and read them          word s, n;     read a string and its length
    array a[n];         read n, then n numbers into an array       sort a, n;     sort the first n of it
    num x = 0;          declare a number (the style's integer)     for i 0 n {    count i from 0 below n
    out x, y;           print a line of numbers                    say "YES";     print a line of text (any string)
    put x;              print a number and a space                 putc c;        print a character
    endl;               end the line

`{{right ~kind wrong ~other wrong}}` marks a place for a mistake of some kind: `resolve` keeps the right text or a wrong
one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_CHOICE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_QUOTED = re.compile(r"""("[^"]*"|'[^']*')""")
_DIRECTIVE = re.compile(r"^(in|out|put|putc|say|word|array|sort) (.*);$")
_NESTED = re.compile(r"^((?:(?:else )?if|for|while) \(.*\)|else) ((?:out|put|putc|say) .*;)$")
_COUNT = re.compile(r"^for (\w+) (\S+) (.+) \{$")
ARRAY_SIZE = 100


@dataclass(frozen=True)
class Style:
    """How an author writes C++. `header` opens the file: its first line tells one author from another."""

    header: str
    main: str = "int main()"
    io: str = "printf"  # "printf", "cout" (using namespace std) or "std::cout"
    number: str = "long long"
    allman: bool = False  # opening brace on a line of its own
    indent: str = "    "
    tight: bool = False  # no spaces around operators
    newline: str = "endl"  # how cout ends a line
    step: str = "i++"
    names: dict[str, str] = field(default_factory=dict)  # for names that sketches use
    returns: bool = True  # `return 0;` at the end


def kinds(sketch: str) -> set[str]:
    """The kinds of mistakes that a sketch has places for."""
    return set(re.findall(r"~(\w+)", sketch))


def resolve(sketch: str, mistake: str | None = None) -> str:
    """The sketch with every marked place made plain: wrong where it knows `mistake`, else right."""

    def pick(match: re.Match[str]) -> str:
        right, *wrongs = re.split(r" ?~", match.group(1))
        texts = {kind: text for kind, _, text in (wrong.partition(" ") for wrong in wrongs)}
        return texts.get(mistake or "", right)

    lines = _CHOICE.sub(pick, sketch).strip().splitlines()
    return "\n".join(line for line in lines if line.strip())


def to_cpp(sketch: str, style: Style) -> str:
    """A whole C++ program for a resolved sketch."""
    body: list[str] = []
    for line in sketch.splitlines():
        code = line.lstrip()
        margin = line[: len(line) - len(code)]
        body += [margin + part for part in _translate(code, style)]
    if style.returns:
        body.append("return 0;")
    lines = [style.main + " {", *("    " + line for line in body), "}"]
    if style.allman:
        lines = [part for line in lines for part in _own_line_braces(line)]
    if style.tight:
        lines = [_outside_quotes(line, _tighten) for line in lines]
    lines = [_indent(line, style.indent) for line in lines]
    lines = [_outside_quotes(line, lambda code: _rename(code, style.names)) for line in lines]
    code = "\n".join(lines)
    return _includes(style, code) + "\n\n" + code + "\n"


def _translate(code: str, style: Style) -> list[str]:
    if code == "endl;":
        return [_end_line(style)]
    match = _DIRECTIVE.match(code)
    if match is None:
        if count := _COUNT.match(code):
            i, low, high = count.groups()
            return [f"for (int {i} = {low}; {i} < {high}; {style.step.replace('i', i)}) {{"]
        if nested := _NESTED.match(code):
            return [f"{nested[1]} {_translate(nested[2], style)[0]}"]
        return [re.sub(r"\bnum\b", style.number, code)]
    word, rest = match[1], match[2]
    parts = [part.strip() for part in rest.split(",")]
    if word == "in":
        return [f"{style.number} {rest};", _read(style, parts)]
    if word == "out":
        return [_out(style, parts)]
    if word == "put":
        return [f'printf("{_format(style)} ", {rest});' if _is_c(style) else f'{_cout(style)} << {rest} << " ";']
    if word == "putc":
        return [f"putchar({rest});" if _is_c(style) else f"{_cout(style)} << {_cast(rest)};"]
    if word == "say":
        if _is_c(style):
            return [f"puts({rest});"]
        return [f"{_cout(style)} << {f'({rest})' if '?' in rest else rest} << {_newline(style)};"]
    if word == "word":
        text, length = parts
        if _is_c(style):
            declared = f"{style.number} {length} = strlen({text});"
            return [f"char {text}[{ARRAY_SIZE}];", f'scanf("%s", {text});', declared]
        prefix = "std::" if style.io == "std::cout" else ""
        return [f"{prefix}string {text};", f"{_cin(style)} >> {text};", f"{style.number} {length} = {text}.size();"]
    if word == "array":
        name, size = re.match(r"(\w+)\[(.*)\]", rest).groups()  # type: ignore[union-attr]
        loop = f"for (int i = 0; i < {size}; {style.step}) "
        read = f'scanf("{_format(style)}", &{name}[i]);' if _is_c(style) else f"{_cin(style)} >> {name}[i];"
        return [*_translate(f"in {size};", style), f"{style.number} {name}[{ARRAY_SIZE}];", loop + read]
    prefix = "" if style.io == "cout" else "std::"
    return [f"{prefix}sort({parts[0]}, {parts[0]} + {parts[1]});"]


def _is_c(style: Style) -> bool:
    return style.io == "printf"


def _cout(style: Style) -> str:
    return style.io


def _cin(style: Style) -> str:
    return style.io.replace("cout", "cin")


def _newline(style: Style) -> str:
    return "std::endl" if style.newline == "endl" and style.io == "std::cout" else style.newline


def _format(style: Style) -> str:
    return {"int": "%d", "long": "%ld"}.get(style.number, "%lld")


def _cast(expression: str) -> str:
    # the sum of a letter and a number is a number, which cout would print as digits
    return expression if re.fullmatch(r"\w+\[\w+\]|'.'|\w+", expression) else f"(char)({expression})"


def _read(style: Style, names: list[str]) -> str:
    if _is_c(style):
        return f'scanf("{" ".join([_format(style)] * len(names))}", {", ".join("&" + name for name in names)});'
    return f"{_cin(style)} >> {' >> '.join(names)};"


def _out(style: Style, values: list[str]) -> str:
    if _is_c(style):
        return f'printf("{" ".join([_format(style)] * len(values))}\\n", {", ".join(values)});'
    shown = ' << " " << '.join(map(_operand, values))
    return f"{_cout(style)} << {shown} << {_newline(style)};"


def _operand(value: str) -> str:
    return f"({value})" if re.search(r"[?<>&|]", value) else value


def _end_line(style: Style) -> str:
    return 'puts("");' if _is_c(style) else f"{_cout(style)} << {_newline(style)};"


def _own_line_braces(line: str) -> list[str]:
    margin = line[: len(line) - len(line.lstrip())]
    line = line.lstrip()
    parts: list[str] = []
    if line.startswith("} "):
        parts.append(margin + "}")
        line = line[2:]
    if line.endswith(" {"):
        return [*parts, margin + line[:-2], margin + "{"]
    return [*parts, margin + line]


def _indent(line: str, indent: str) -> str:
    code = line.lstrip(" ")
    return indent * ((len(line) - len(code)) // 4) + code


def _tighten(code: str) -> str:
    margin = code[: len(code) - len(code.lstrip(" "))]
    code = re.sub(r" ?(<<|>>|[<>=!+\-*/%&|]=?|==|&&|\|\||\?|:|,|;) (?=\S)", r"\1", code.lstrip(" "))
    return margin + re.sub(r"\b(for|if|while) \(", r"\1(", code).replace(") {", "){")


def _rename(code: str, names: dict[str, str]) -> str:
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda match: names.get(match[0], match[0]), code)


def _outside_quotes(line: str, change) -> str:
    parts = _QUOTED.split(line)
    return "".join(part if index % 2 else change(part) if part else part for index, part in enumerate(parts))


def _includes(style: Style, code: str) -> str:
    """The header with the further includes that the program needs, after its first include line."""
    lines = style.header.splitlines()
    if "<bits/" in style.header:
        return style.header
    needed = [("strlen", "<cstring>"), ("sort(", "<algorithm>"), ("string ", "<string>")]
    extra = [f"#include {name}" for mark, name in needed if mark in code and name not in style.header]
    last = max(index for index, line in enumerate(lines) if line.startswith("#include"))
    return "\n".join([*lines[: last + 1], *extra, *lines[last + 1 :]])
