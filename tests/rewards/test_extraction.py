"""Where the program is in a completion, and what happens to `freopen`."""

from __future__ import annotations

import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.extraction import extract, extract_source, replace_freopen

PROGRAM = '#include <cstdio>\nint main() { puts("42"); }\n'
OTHER = "int other() { return 1; }\n"


def fenced(body: str, label: str = "cpp", marks: str = "```") -> str:
    return f"{marks}{label}\n{body}{marks}\n"


@pytest.mark.parametrize("label", ["cpp", "c++", "cc", "cxx", "C++", "CPP", "cpp title=main.cpp", "{.cpp}", " cpp "])
def test_labels_of_the_language(label: str) -> None:
    assert extract(f"Sure:\n\n{fenced(PROGRAM, label)}Done.").source == PROGRAM


@pytest.mark.parametrize(
    ("completion", "source", "rule"),
    [
        (fenced(OTHER) + fenced(PROGRAM), PROGRAM, "fence"),  # the last one
        (fenced(PROGRAM) + fenced("3 4\n", ""), PROGRAM, "fence"),  # a labelled one before any other
        (fenced(PROGRAM) + fenced("import os\n", "python"), PROGRAM, "fence"),
        (fenced(OTHER, "") + fenced(PROGRAM, ""), PROGRAM, "any"),
        (fenced(PROGRAM, "text"), PROGRAM, "any"),
        (fenced(PROGRAM) + "```cpp\nint cut_off() {", PROGRAM, "fence"),  # complete ones only
        (fenced(PROGRAM) + fenced("", "cpp"), PROGRAM, "fence"),  # an empty fence is no program
        ("```cpp\n" + PROGRAM, PROGRAM, "include"),
        ("The program:\n" + PROGRAM, PROGRAM, "include"),
        (PROGRAM + "```\nThat is all.", PROGRAM, "include"),
        ("```cpp\n" + OTHER + "I start again.\n" + fenced(PROGRAM), PROGRAM, "fence"),  # the first was never closed
        (fenced("~~~\n" + PROGRAM, marks="````"), "~~~\n" + PROGRAM, "fence"),
        (fenced(PROGRAM, marks="~~~"), PROGRAM, "fence"),
        ("I cannot solve this.", None, "none"),
        ("", None, "none"),
        ("```cpp\nint main() {", None, "none"),
    ],
)
def test_rules(completion: str, source: str | None, rule: str) -> None:
    found = extract(completion)
    assert (found.source, found.rule) == (source, rule)


@pytest.mark.parametrize(
    ("completion", "source"),
    [
        (f"<think>\n{fenced(OTHER)}</think>\n{fenced(PROGRAM)}", PROGRAM),
        (f"{fenced(PROGRAM)}<think>\n{fenced(OTHER)}", PROGRAM),  # never closed
        (f"<think>\n{fenced(OTHER)}", None),
        (f"<think>\n{OTHER}#include <map>\n", None),
        (f"Let me see.\n{fenced(OTHER)}</think>\n{fenced(PROGRAM)}", PROGRAM),  # opened by the chat template
        (f"<think>a</think>{fenced(PROGRAM)}<think>{fenced(OTHER)}</think>", PROGRAM),
        (f"<think>```cpp\n</think>\n{fenced(PROGRAM)}", PROGRAM),
        (f"<think>\n{fenced(OTHER)}</think>\nNo program.", None),
    ],
)
def test_thinking_holds_no_answer(completion: str, source: str | None) -> None:
    assert extract_source(completion) == source


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<think></think>"])
def test_tags_inside_the_answer_are_text(tag: str) -> None:
    program = f'int main() {{ puts("{tag}"); }}\n'
    assert extract_source(fenced(program)) == program


def test_carriage_returns() -> None:
    assert extract_source(fenced(PROGRAM).replace("\n", "\r\n")) == PROGRAM


def test_other_languages() -> None:
    completion = fenced("print(1)\n", "python") + fenced(PROGRAM)
    assert extract_source(completion, "python") == "print(1)\n"
    assert extract_source("#include <cstdio>", "python") is None


LINES = st.text(alphabet=st.characters(exclude_characters="`~\r", exclude_categories=["Cs"]), max_size=60).map(
    lambda text: text.replace("<think>", "").replace("</think>", "").replace("freopen", "")
)


@given(before=LINES, body=LINES, after=LINES)
def test_a_fence_gives_back_its_body(before: str, body: str, after: str) -> None:
    if not body.strip():
        body = "int x;" + body
    body = body if body.endswith("\n") else body + "\n"
    assert extract_source(f"{before}\n{fenced(body)}{after}") == body


@given(st.text(alphabet="`~cpp+ \n\r<>/think#include{}();\"'R", max_size=200))
def test_any_text_is_survived(text: str) -> None:
    found = extract(text)
    assert (found.source is None) == (found.rule == "none")
    if found.source is not None:
        assert found.source.strip() and "\r" not in found.source


# ---------------------------------------------------------------- freopen


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('freopen("in", "r", stdin);', "(stdin);"),
        ('std::freopen("in", "r", stdin);', "(stdin);"),
        ('::freopen("in","r",stdin);', "(stdin);"),
        ('freopen (name(1, 2), "r", stdin) ;', "(stdin) ;"),
        ('if(freopen("a","w",stdout)) x();', "if((stdout)) x();"),
        ('if (!freopen("a","r",stdin)) return 1;', "if (!(stdin)) return 1;"),
        ('FILE *f = freopen("a)", "r", stdin);', "FILE *f = (stdin);"),
        ('freopen("a",\n  "r", // why, (not\n  stdin);', "(// why, (not\n  stdin);"),
        ('#define F(x) freopen(x, "r", stdin)', "#define F(x) (stdin)"),
        ('// freopen("a","r",stdin);', '// freopen("a","r",stdin);'),
        ('/* freopen("a","r",stdin); */', '/* freopen("a","r",stdin); */'),
        ('puts("freopen(a, b, c)");', 'puts("freopen(a, b, c)");'),
        ('R"(freopen(a, b, c))"', 'R"(freopen(a, b, c))"'),
        ("my_freopen(a, b, c)", "my_freopen(a, b, c)"),
        ("file.freopen(a, b, c)", "file.freopen(a, b, c)"),
        ("freopen(a, b", "freopen(a, b"),
        ("freopen(a)", "freopen(a)"),
        ("char c = '\"'; freopen(a, b, c);", "char c = '\"'; (c);"),
    ],
)
def test_freopen(before: str, after: str) -> None:
    assert replace_freopen(before) == after
    assert replace_freopen(after) == after


@given(st.text(alphabet="freopn(),;\"'/*\\R \n", max_size=80))
def test_freopen_survives_any_text(text: str) -> None:
    assert "freopen" in text or replace_freopen(text) == text


def test_control_flow_is_kept(tmp_path) -> None:
    """A guarded call still guards: the program prints the same as with a file that can be opened."""
    source = fenced(
        "#include <cstdio>\nint main() {\n"
        '    if (freopen("/dev/stdin", "r", stdin)) puts("yes");\n    else puts("no");\n'
        '    for (int i = 0; i < 2; i++) freopen("/dev/stdin", "r", stdin);\n    puts("end");\n}\n'
    )
    (tmp_path / "a.cpp").write_text(extract_source(source) or "")
    subprocess.run(["g++", str(tmp_path / "a.cpp"), "-o", str(tmp_path / "a")], check=True)
    assert subprocess.run([str(tmp_path / "a")], capture_output=True, text=True, check=True).stdout == "yes\nend\n"


@pytest.mark.parametrize("text", ["freopen(", "freopen(a, b, ", 'R"(', 'R"x(', '\\"', "'", "/*"])
def test_degenerate_texts_are_read_in_time(text: str) -> None:
    """What a collapsed policy repeats to its limit must not hold up the trainer, however it nests."""
    source = "#include <x>\n" + text * (60_000 // len(text))
    start = time.process_time()
    assert extract_source(source) == source
    assert time.process_time() - start < 2.0


def test_a_long_call_stays() -> None:
    long = f'freopen("{"a" * 400}", "r", stdin); freopen("a", "r", stdin);'
    assert replace_freopen(long) == long.replace('freopen("a", "r", stdin)', "(stdin)")
