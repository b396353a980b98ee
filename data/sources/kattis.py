"""Kattis problem packages: folders with problem.yaml, a statement and data/, or rows that were converted from such
packages.

Packages whose outputs need a validator of their own, and interactive ones, are skipped. Licence and credit are kept
in every problem."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.sources.base import Loaded, Record, Skip, Source, memory_bytes, optional, seconds
from rewards.problem import MEGABYTE, ProblemError, problem_from_record

LANGUAGES = {".cpp": "cpp", ".cc": "cpp", ".py": "python", ".c": "c"}
MAX_SOLUTIONS = 3


def convert(record: Record) -> Loaded:
    """A row with `statement` and `tests`, or a package as `read_packages` gives it: the same fields."""
    if record.get("skip"):
        raise Skip(str(record["skip"]))
    memory = memory_bytes(record.get("memory_limit_mb"), MEGABYTE)
    credit = ", ".join(str(record[name]) for name in ("license", "author", "source", "upstream") if record.get(name))
    try:
        problem = problem_from_record(
            {
                **record,
                "time_limit": seconds(record.get("time_limit")),
                "memory_limit": memory,
                "license": credit,
                "source": "kattis",
            }
        )
    except ProblemError as error:
        raise Skip(str(error)) from None
    solutions = tuple((s["language"], s["source"]) for s in record.get("solutions") or ())
    return Loaded(problem, solutions)


def read_packages(folder: Path) -> Iterator[tuple[str, Record]]:
    """Every folder with a problem.yaml, at any depth."""
    for path in sorted(folder.rglob("problem.yaml")):
        yield str(path.parent), _package(path.parent)


def _package(folder: Path) -> dict[str, Any]:
    import yaml

    try:
        about = yaml.safe_load((folder / "problem.yaml").read_bytes()) or {}
    except yaml.YAMLError:
        return {"skip": "problem.yaml is not valid YAML"}
    if not isinstance(about, dict):
        return {"skip": "problem.yaml has no fields"}
    record: dict[str, Any] = {
        "id": f"kattis/{folder.name}",
        "license": about.get("license"),
        "author": about.get("author"),
    }
    validation = str(about.get("validation") or "default").split()
    kind = about.get("type") or ""
    has_validator = any((folder / name).is_dir() for name in ("output_validators", "output_validator"))
    if validation[0] == "custom" or has_validator:
        return record | {"skip": "needs its own validator"}
    if "interactive" in validation or "interactive" in str(kind):
        return record | {"skip": "is interactive"}
    statement = _statement(folder)
    if not statement:
        return record | {"skip": "no statement in English"}
    limits = about.get("limits") or {}
    solutions = [
        {"language": LANGUAGES[path.suffix], "source": path.read_text(encoding="utf-8", errors="replace")}
        for path in sorted(folder.glob("submissions/accepted/*"))
        if path.suffix in LANGUAGES
    ]
    solutions.sort(key=lambda solution: solution["language"] != "cpp")
    name = about.get("name")
    return record | {
        "title": name.get("en") if isinstance(name, dict) else name,
        "statement": statement,
        "tests": _tests(folder),
        "checker": _checker(str(about.get("validator_flags") or "")),
        "time_limit": limits.get("time_limit") or _time_file(folder),
        "memory_limit_mb": limits.get("memory") or limits.get("memory_limit"),
        "solutions": solutions[:MAX_SOLUTIONS],
        "solution": next((s["source"] for s in solutions if s["language"] == "cpp"), ""),
        "difficulty": optional(about, "difficulty"),
    }


def _time_file(folder: Path) -> str | None:
    path = folder / ".timelimit"
    return path.read_text() if path.is_file() else None


def _tests(folder: Path) -> list[dict[str, Any]]:
    tests = []
    for part in ("sample", "secret"):
        for path in sorted((folder / "data" / part).rglob("*.in")):
            answer = path.with_suffix(".ans")
            if answer.is_file():
                texts = [p.read_text(encoding="utf-8", errors="surrogateescape") for p in (path, answer)]
                tests.append({"input": texts[0], "output": texts[1], "public": part == "sample"})
    return tests


def _checker(flags: str) -> dict[str, Any]:
    """The default validator's flags: tokens, whose case does not matter unless a flag says so. Of two tolerances the
    wider one: either suffices."""
    found = re.findall(r"float(?:_absolute|_relative)?_tolerance\s+([0-9.]+(?:[eE][+-]?[0-9]+)?)", flags)
    if found:
        return {"type": "float", "tolerance": max(map(float, found))}
    if "space_change_sensitive" in flags:
        return {"type": "exact"}
    return {"type": "tokens", "case_sensitive": "case_sensitive" in flags}


def _statement(folder: Path) -> str:
    for place in ("problem_statement", "statement"):
        for name in ("problem.en.md", "problem.md", "problem.en.tex", "problem.tex"):
            path = folder / place / name
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
                return (latex_to_markdown(text) if path.suffix == ".tex" else text).strip()
    return ""


_REPLACED = (
    (re.compile(r"(?<!\\)%.*"), ""),
    (re.compile(r"\\problemname\{([^{}]*)\}"), r"# \1\n"),
    (re.compile(r"\\(?:sub)*section\*?\{([^{}]*)\}"), r"\n## \1\n"),
    (re.compile(r"\\begin\{(?:center|figure|wrapfigure)\}.*?\\end\{(?:center|figure|wrapfigure)\}", re.DOTALL), ""),
    (re.compile(r"\\illustration(?:\{[^{}]*\}|\[[^\]]*\])*"), ""),
    (re.compile(r"\\(?:begin|end)\{(?:itemize|enumerate|description)\}(?:\[[^\]]*\])?"), ""),
    (re.compile(r"\\item(?:\[[^\]]*\])?\s*"), "- "),
    (re.compile(r"\\(?:emph|textit)\{([^{}]*)\}"), r"*\1*"),
    (re.compile(r"\\textbf\{([^{}]*)\}"), r"**\1**"),
    (re.compile(r"\\(?:texttt|verb)\{([^{}]*)\}"), r"`\1`"),
    (re.compile(r"``|''"), '"'),
    (re.compile(r"\\([%&#_])"), r"\1"),
)


def latex_to_markdown(text: str) -> str:
    """The commands that statements of packages use; mathematics stays as it is."""
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


SOURCE = Source("kattis", convert, read_folder=read_packages)
