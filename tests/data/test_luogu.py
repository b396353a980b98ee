"""Luogu statements in their three layouts, and what is left out of them. The texts are ours."""

from __future__ import annotations

import pytest

from data.sources import SOURCES, Loaded, Skip, convert_record
from data.sources.luogu import Unparsable, parse_statement
from rewards.problem import Test

INSTRUCTION = "请解决下面的题目。请给出完整代码。\n```cpp\n<your code here>\n```\n题目内容:\n"
HEAD = (
    "# P9999 两数之和\n\n## 题目背景\n\n小明在学加法。\n\n## 题目描述\n\n求两个整数的和。\n\n"
    "## 输入格式\n\n两个整数。\n\n## 输出格式\n\n一个整数。\n\n"
)
HINT = "## 说明/提示\n\n数字不大。\n\n"


def sample(title: str, given: str, wanted: str) -> str:
    """One sample; the title holds three headings, separated by bars."""
    whole, before, behind = title.split("|")
    parts = [whole, before, f"```\n{given}\n```", behind, f"```\n{wanted}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n\n"


def both(title: str) -> str:
    return sample(title.replace("N", "1"), "1 2", "3") + sample(title.replace("N", "2"), "5 5", "10")


V1 = HEAD + HINT + "## 样例\n\n" + both("### 样例 N|**输入：**|**输出：**")
V2 = HEAD + both("## 样例 #N|### 样例输入 #N|### 样例输出 #N") + HINT.replace("说明/", "")
V3 = HEAD + both("## 输入输出样例 #N|### 输入 #N|### 输出 #N") + HINT
LAYOUTS = {"dpo": V1, "old": V2, "new": V3}
WANTED = (("1 2\n", "3\n"), ("5 5\n", "10\n"))

VARIANTS = {
    "as it is": lambda text: text,
    "windows": lambda text: text.replace("\n", "\r\n"),
    "deeper": lambda text: "\n".join(f"#{line}" if line.startswith("#") else line for line in text.split("\n")),
    "labelled fences": lambda text: text.replace("```\n1", "```plain\n1").replace("```\n3", "```text\n3"),
    "quoted": lambda text: "\n".join(f"> {line}" for line in text.split("\n")),
    "commented": lambda text: "\n".join(f"// {line}" for line in text.split("\n")),
    "english labels": lambda text: text.replace("**输入：**", "Input:").replace("**输出：**", "**Output:**"),
    "narrow colons": lambda text: text.replace("：", ":"),
    "tildes": lambda text: text.replace("```", "~~~"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
def test_layouts(layout: str, variant: str, instruction: str) -> None:
    found = parse_statement(VARIANTS[variant](instruction + LAYOUTS[layout]))
    assert found.samples == WANTED
    assert "求两个整数的和" in found.text and "一个整数。" in found.text and "数字不大" in found.text
    assert "5 5" not in found.text and "样例" not in found.text and "your code here" not in found.text


def record(text: str) -> dict:
    return {
        "conversations": [{"from": "human", "value": text}],
        "chosen": {"from": "gpt", "value": "```cpp\nint main(){}\n```"},
        "rejected": {"from": "gpt", "value": "no"},
    }


def test_a_record_becomes_a_problem() -> None:
    loaded = convert_record(SOURCES["luogu"], record(INSTRUCTION + V1))
    assert isinstance(loaded, Loaded) and loaded.problem.id == "luogu/P9999"
    assert loaded.problem.tests == tuple(Test(i, o, True) for i, o in WANTED)


def changed(old: str, new: str) -> str:
    assert old in V1
    return V1.replace(old, new)


@pytest.mark.parametrize(
    "output", ["3(即 1+2)", "3 // 和", "3\n...", "3\n\n剩余部分不予展示", "答案是 3", "3\n* * *\n4", "3 // the sum"]
)
def test_annotated_samples_are_left_out(output: str) -> None:
    found = parse_statement(changed("```\n3\n```", f"```\n{output}\n```"))
    assert found.samples == WANTED[1:]


@pytest.mark.parametrize("nothing", ["无", "（无）", "无。", ""])
def test_a_program_without_input(nothing: str) -> None:
    assert parse_statement(changed("```\n1 2\n```", f"```\n{nothing}\n```")).samples[0] == ("", "3\n")


@pytest.mark.parametrize(
    "text, why",
    [
        (HEAD, "no sample"),
        ("", "no sample"),
        (changed("**输出：**\n\n```\n3\n```", ""), "pairs"),
        (changed("**输入：**\n\n```\n5 5\n```", ""), "pairs"),
        (changed("```\n10\n```", "```\n10\n"), "never closed"),
        (changed("3\n", "三\n").replace("10\n", "十\n"), "annotation"),
    ],
)
def test_unparsable_statements(text: str, why: str) -> None:
    with pytest.raises(Unparsable, match=why):
        convert_record(SOURCES["luogu"], record(text))


@pytest.mark.parametrize(
    "text", ["本题有 Special Judge。", "输出任意一个即可。", "这是一道交互题。", "从 sum.in 读入,输出到 sum.out。"]
)
def test_problems_that_samples_cannot_judge(text: str) -> None:
    with pytest.raises(Skip) as reason:
        convert_record(SOURCES["luogu"], record(V1.replace("数字不大。", text)))
    assert not isinstance(reason.value, Unparsable)


def test_records_of_another_shape() -> None:
    wrongs: list[dict] = [{}, {"conversations": []}, {"conversations": [{"from": "human"}]}, {"conversations": [3]}]
    for wrong in wrongs:
        with pytest.raises(Skip):
            convert_record(SOURCES["luogu"], wrong)
