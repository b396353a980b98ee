"""Where the program is in a completion, and what happens to `freopen`."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.extraction import blanked, depths, extract, extract_source, functions, replace_freopen

PROGRAM = '#include <cstdio>\nint main() { puts("42"); }\n'
OTHER = "int other() { return 1; }\n"


def fenced(body: str, label: str = "cpp", marks: str = "```") -> str:
    return f"{marks}{label}\n{body}{marks}\n"


LABELS = ["cpp", "c++", "cc", "cxx", "C++", "CPP", "cpp title=main.cpp", "{.cpp}", " cpp ", "c++23", "c++2a", "cpp20"]
LABELS += ["gnu++17", "cpp:main.cpp", "cpp,linenos", "cpp{1,2}", "C/C++", "c", "C11"]


@pytest.mark.parametrize("label", LABELS)
def test_labels_of_the_language(label: str) -> None:
    found = extract(f"Sure:\n\n{fenced(PROGRAM, label)}Output:\n{fenced('{42}', '')}Done.")
    assert (found.source, found.rule) == (PROGRAM, "fence")


def test_labels_of_other_languages() -> None:
    for label in ("csharp", "css", "c#", "clojure", "pycon"):
        assert extract(fenced(PROGRAM, label)).rule == "any"
    assert extract(fenced("print(1)\n", "python3.11"), "python").rule == "fence"
    assert extract(fenced(PROGRAM, "c") + fenced(OTHER)).source == OTHER  # C only where nothing is C++
    assert extract(fenced(PROGRAM, "c++") + fenced(OTHER, "c99"), "c").source == OTHER


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
        (fenced(PROGRAM, "") + fenced("42\n", ""), PROGRAM, "any"),  # the last that looks like a program
        (fenced("41\n", "") + fenced("42\n", ""), "42\n", "any"),
        (fenced(PROGRAM[:-1]) + "``` python\nassert f() == 1\n```\n", PROGRAM[:-1], "fence"),
        ("```cpp\n" + PROGRAM, PROGRAM, "open"),
        ("```cpp\nint f(int x) {\n#include <map>\n", "#include <map>\n", "include"),
        ("The program:\n" + PROGRAM, PROGRAM, "include"),
        (PROGRAM + "```\nThat is all.", PROGRAM, "include"),
        ("```cpp\n" + OTHER + "I start again.\n" + fenced(PROGRAM), PROGRAM, "fence"),  # the first was never closed
        (fenced("~~~\n" + PROGRAM, marks="````"), "~~~\n" + PROGRAM, "fence"),
        (fenced(PROGRAM, marks="~~~"), PROGRAM, "fence"),
        ("I cannot solve this.", None, "none"),
        ("", None, "none"),
        ("```cpp\nint main() {", None, "none"),
        ("```cpp\nint main() { // }", None, "none"),
        ("```cpp\n" + OTHER + "int ma", None, "none"),
        ("```cpp\nint x;", None, "none"),
        (f"<pre><code>\n{PROGRAM}</code></pre>\n", PROGRAM, "include"),
        (f"~~~\n{PROGRAM}~~~ That is all.", PROGRAM, "include"),
    ],
)
def test_rules(completion: str, source: str | None, rule: str) -> None:
    found = extract(completion)
    assert (found.source, found.rule) == (source, rule)


@pytest.mark.parametrize(
    ("completion", "source"),
    [
        (f"```cpp\n{OTHER}``` python\nassert other() == 1\n```\n", OTHER),  # closed by the next one's opening
        (f"```cpp\n{OTHER}``` This is it.\n", OTHER),
        (f"```cpp\n{OTHER[:-1]}```\n", OTHER[:-1]),  # closed on its last line
        (f"```cpp\n{OTHER[:-1]}```\nOutput:\n```\n1\n```\n", OTHER[:-1]),
        (f"```cpp\n{OTHER}", OTHER),  # never closed
        ("```cpp\n    return 1;\n}\n", "    return 1;\n}\n"),  # a body
        (f"Here it is: ```cpp\n{OTHER}```\nOutput:\n```\n1\n```\n", OTHER),
        (f"1. Do:\n\n    ```cpp\n    {OTHER}\n    /* ``` */\n    ```\n", OTHER + "\n/* ``` */\n"),
        (f"\t```cpp\n\t{OTHER}\t```\n", OTHER),
        (f"> ```cpp\n> {OTHER}>\n> ```\n", OTHER + "\n"),
        (f"> ```cpp\n> {OTHER[:-1]}```\n", OTHER[:-1]),
        (f"  ```cpp\n    {OTHER}  ```\n", "  " + OTHER),
        (f"```cpp\n/*\n    ```\n*/\n{OTHER}```\n", f"/*\n    ```\n*/\n{OTHER}"),
        (f'```cpp\nauto s = "```";\n{OTHER}```\n', f'auto s = "```";\n{OTHER}'),
    ],
)
def test_fences_that_are_not_perfect(completion: str, source: str) -> None:
    assert extract_source(completion) == source


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


def test_an_example_of_use_is_not_the_program() -> None:
    twice = "int twice(int x) {\n    return 2 * x;\n}\n"
    use = fenced("int x = twice(3);\nif (x == 6) {\n    puts(\"6\");\n}\n")
    assert extract_source(fenced(twice) + use, function="twice") == twice
    assert extract_source(fenced(twice, "") + use.replace("cpp", ""), function="twice") == twice
    assert extract_source(fenced(twice) + fenced(PROGRAM), function="twice") == twice
    assert extract_source(fenced(twice) + fenced(twice + PROGRAM), function="twice") == twice + PROGRAM
    assert extract_source(fenced(PROGRAM) + use) == PROGRAM
    body = "    return 2 * x;\n}\n"
    assert extract_source(fenced(twice) + fenced(body), function="other") == body


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


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("a // {\nb", "a     \nb"),
        ("c = '}'; d", "c =    ; d"),
        ('u8R"x({)"})x" + u8"{"', "              + u8   "),
        ("1'000 + f('{') + 1'0", "1 000 + f(   ) + 1 0"),
        ("x = u8'a' + '{'", "x = u8    +    "),
        ("f() <% a<:0:>; %>", "f()  { a<:0:>;  }"),
    ],
)
def test_code_without_literals(source: str, code: str) -> None:
    assert blanked(source).rstrip() == code.rstrip()


@given(st.text(alphabet="{}<%>'\"/*\\R(18u \n", max_size=80))
def test_code_without_literals_has_its_length(source: str) -> None:
    code = blanked(source)
    assert len(code) == len(source) and code.count("\n") == source.count("\n")
    assert depths(source) == depths(code)


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


@pytest.mark.parametrize(
    "head",
    ["int main()", "auto main() -> int", "int main() try", "int f(int x) noexcept", "auto g(int t) -> decltype(t + 1)"],
)
def test_a_definition_is_known_in_all_its_forms(head: str) -> None:
    assert functions(f"#include <x>\n{head} {{ return 0; }}\n") == [re.findall(r"(\w+)\(", head)[0]]
    program = f"{head} {{ return 0; }}\n"
    if "main" in head:
        assert extract_source(f"```cpp\n{program}```\nin it\n```cpp\nans += x;\n```\n") == program


@pytest.mark.parametrize("text", ["_", "f()->", "f(", "f() -> g(x) ", "f(f(", "a b "])
def test_degenerate_definitions_are_read_in_time(text: str) -> None:
    start = time.process_time()
    functions("#define " + text * (60_000 // len(text)))
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("text", ["freopen(", "freopen(a, b, ", 'R"(', 'R"x(', '\\"', "'", "/*"])
def test_degenerate_programs_are_read_in_time(text: str) -> None:
    """What a collapsed policy repeats to its limit must not hold up the trainer, however it nests."""
    source = "#include <x>\n" + text * (60_000 // len(text))
    start = time.process_time()
    assert extract_source(source) == source
    assert time.process_time() - start < 2.0


def test_a_long_call_stays() -> None:
    long = f'freopen("{"a" * 400}", "r", stdin); freopen("a", "r", stdin);'
    assert replace_freopen(long) == long.replace('freopen("a", "r", stdin)', "(stdin)")


@pytest.mark.parametrize("text", ["`", "~", " ", ">", "```", "```cpp\n", "x```\n", "`~", "1", "```c ", "```cpp\n}```"])
@pytest.mark.parametrize("before", ["", "```", "~~~", "```cpp\n", "#include <x>\n"])
def test_degenerate_texts_are_read_in_time(text: str, before: str) -> None:
    start = time.process_time()
    for end in ("", "`", "!"):
        extract(before + text * (60_000 // len(text)) + end)
    assert time.process_time() - start < 4.0
