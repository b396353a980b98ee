"""Luogu statements, in Chinese Markdown: rows of the Luogu DPO set, whose only tests are the samples in the text.

Three layouts of samples are read; `N` is a number, the colon may be of either width, headings may be one level deeper:

    ### 样例 N   **输入：** fence   **输出：** fence        the DPO set (also `Input:`, `Output:`)
    ### 样例输入 #N fence   ### 样例输出 #N fence           older copies of the site
    ### 输入 #N fence       ### 输出 #N fence               newer copies of the site

A sample that holds Chinese text (an annotation, not data) is left out. A statement whose samples cannot be read in
pairs is `Unparsable`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from data.sources.base import Loaded, Record, Skip, Source
from rewards.problem import Problem, Test


class Unparsable(Skip):
    """A statement from which no usable sample can be read."""


CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\u3000-\u303f\uff00-\uffef]")
_NOTHING = {"无", "无。", "（无）", "(无)", "无输入"}
_HEADING = re.compile(r"\s*(#{1,6})\s*(.*?)\s*#*\s*$")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_NUMBERED = r"\s*[#＃]?\s*[0-9一二三四五六七八九十]*\s*[:：]?\s*"
_INPUT = re.compile(rf"(?:样例输入|输入样例|输入|sample input|input){_NUMBERED}", re.IGNORECASE)
_OUTPUT = re.compile(rf"(?:样例输出|输出样例|输出|sample output|output){_NUMBERED}", re.IGNORECASE)
_SAMPLES = re.compile(rf"(?:输入输出样例|样例|输入输出|samples?|examples?){_NUMBERED}", re.IGNORECASE)
_CONTENT = re.compile(r"题目内容\s*[:：]")
_PREFIX = re.compile(r"^\s*(?:>|//) ?")
_PROSE = re.compile(r"^\s*(?:\.\.\.+|…+|\*\s*\*\s*\*|//.*)\s*$|\s//\s", re.MULTILINE)
_TITLE = re.compile(r"^#\s*([A-Z]+\d+\w*)\b", re.MULTILINE)
_MANY_ANSWERS = re.compile(
    r"special\s*judge|\bspj\b|任意一[个种组]|输出任意|任何一[个种组].{0,6}(?:即可|均可|都)", re.IGNORECASE
)
_NOT_STDIN = re.compile(r"交互题|交互库|提交答案|\.in\b.{0,20}\.out\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement without its samples, and the samples as (input, output)."""

    text: str
    samples: tuple[tuple[str, str], ...]


def convert(record: Record) -> Loaded:
    conversations = record.get("conversations")
    if not isinstance(conversations, list) or not conversations or not isinstance(conversations[0].get("value"), str):
        raise Skip("field 'conversations' contains no text")
    statement = parse_statement(conversations[0]["value"])
    if _MANY_ANSWERS.search(statement.text):
        raise Skip("several answers are right (special judge)")
    if _NOT_STDIN.search(statement.text):
        raise Skip("is interactive, or does not use standard input and output")
    tests = tuple(Test(i, o, public=True) for i, o in statement.samples)
    title = _TITLE.search(statement.text)
    digest = hashlib.sha256(statement.text.encode()).hexdigest()[:12]
    return Loaded(
        Problem(
            id=f"luogu/{title[1] if title else digest}",
            statement=statement.text,
            tests=tests,
            source="luogu",
            license="texts of Luogu and of the contests, no open licence",
        )
    )


def parse_statement(value: str) -> Statement:
    """Split a prompt into the statement proper and its samples. Raises `Unparsable`, saying why."""
    text = _unquoted(value.replace("\r\n", "\n").replace("\r", "\n"))
    if found := _CONTENT.search(text):  # the instruction before it has a fence of its own
        text = text[found.end() :]
    kept: list[str] = []
    blocks: list[tuple[str, str]] = []  # ("input" or "output", content)
    expecting = ""
    section = 0  # level of the sample section's heading while we are inside
    lines = iter(text.split("\n"))
    for line in lines:
        if opened := _FENCE.match(line):
            body = _fence_body(lines, opened[1])
            if body is None:
                raise Unparsable("a code fence is never closed")
            if expecting:
                blocks.append((expecting, "\n".join(body)))
                expecting = ""
            elif not section:
                kept += [line, *body, opened[1]]
            continue
        heading = _HEADING.match(line)
        label = (heading[2] if heading else line).strip().strip("*_").strip()
        kind = _kind(label)
        if kind == "samples" and heading:
            section, expecting = len(heading[1]), ""
        elif kind in ("input", "output"):
            expecting = kind
            section = section or (len(heading[1]) if heading else 6)
        elif heading:
            section, expecting = (section if section and len(heading[1]) > section else 0), ""
        if not section and not kind:
            kept.append(line)
    return Statement(re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip(), _pairs(blocks))


def _kind(label: str) -> str:
    for kind, pattern in (("samples", _SAMPLES), ("input", _INPUT), ("output", _OUTPUT)):
        if label and pattern.fullmatch(label):
            return kind
    return ""


def _fence_body(lines: object, marks: str) -> list[str] | None:
    body: list[str] = []
    for line in lines:  # type: ignore[attr-defined]
        stripped = line.strip()
        if stripped.startswith(marks) and set(stripped) == {marks[0]}:
            return body
        body.append(line)
    return None


def _unquoted(text: str) -> str:
    """Without the `> ` or `// ` that every line has when a statement was pasted as a quotation or a comment."""
    lines = [line for line in text.split("\n") if line.strip()]
    for prefix in (">", "//"):
        if lines and sum(line.lstrip().startswith(prefix) for line in lines) > 0.8 * len(lines):
            return "\n".join(_PREFIX.sub("", line, count=1) for line in text.split("\n"))
    return text


def _pairs(blocks: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    if not blocks:
        raise Unparsable("no sample was found")
    if [kind for kind, _ in blocks] != ["input", "output"] * (len(blocks) // 2):
        raise Unparsable("sample inputs and outputs do not come in pairs")
    samples = []
    for (_, given), (_, wanted) in zip(blocks[::2], blocks[1::2], strict=True):
        given = "" if given.strip() in _NOTHING else given
        if any(CHINESE.search(part) or _PROSE.search(part) for part in (given, wanted)) or not wanted.strip():
            continue
        samples.append((f"{given.rstrip()}\n" if given.strip() else "", f"{wanted.rstrip()}\n"))
    if not samples:
        raise Unparsable("every sample is an annotation, not data")
    return tuple(samples)


SOURCE = Source("luogu", convert, hub="Misaka114514/luogu_dpo", hub_files="luogu_dpo.json")
