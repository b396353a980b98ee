"""The report: what it collects, that hostile text stays text, and the page in a real browser with 20,000 rollouts."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import ConfigError, Settings, load_config
from pipeline.report.collect import run_data
from pipeline.report.page import write_page
from pipeline.report.write import write_report
from pipeline.run_folder import RunFolder
from tests.pipeline.report import chromium

HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
VERDICTS = ("ACCEPTED", "WRONG_ANSWER", "COMPILE_ERROR", "TIME_LIMIT")


def write_run(path: Path, steps: int, per_step: int, program_lines: int = 3) -> Path:
    """A run as the trainer leaves it, with known contents: a quarter of the rollouts has each verdict."""
    folder = RunFolder.create(str(path), "run")
    tests = [{"input": f"{i}\n", "output": HOSTILE} for i in range(6)]
    for name in ("train", "held-out"):
        ids = [f"{name}-{i}" for i in range(40)]
        records = [{"id": one, "statement": f"Problem {one} {HOSTILE}", "tests": tests} for one in ids]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    train, held_out = str(path / "train.jsonl"), str(path / "held-out.jsonl")
    config = Settings(model="starter", dataset=train, eval_dataset=held_out, eval_problems=40)
    config.save(folder.path / "config.yaml")
    numbers = random.Random(0)
    for step in range(1, steps + 1):
        seconds = {"generate": 2.0, "grade_wait": 0.5, "log_probs": 1.0, "backward": 2.0, "refresh": 0.1, "step": 5.6}
        folder.append(
            "metrics",
            {
                "step": step,
                "reward": numbers.random(),
                "pass_rate": numbers.random(),
                "kl_base": float("nan") if step == 2 else 0.01 * step,
                "verdicts": {verdict: per_step // 4 for verdict in VERDICTS},
                "v": [0.01 * step * (-1) ** i for i in range(32)],
                "kept_share": 0.9,
                "seconds": seconds,
                "idle": {"device": 0.2, "graders": 0.1 * step},
            },
        )
        start = 1e9 + 6 * step
        lanes = {"generate": [[start, start + 2]], "train": [[start + 3, start + 6]], "grade": [[start + 1, start + 5]]}
        folder.append("timeline", {"step": step, "start": start, "end": start + 6, "lanes": lanes})
        folder.write_rollouts(f"step-{step:05d}", [rollout("train", step, i, program_lines) for i in range(per_step)])
    for step, value in ((0, 0.4), (steps, 0.6)):
        one = {"pass_at_1": value, "low": value - 0.1, "high": value + 0.1, "n": 40}
        folder.append("evaluations", {"step": step, "pass@1": one, "verdicts": {"ACCEPTED": int(40 * value)}})
        rows = [rollout("held-out", step, i, program_lines) | {"sample": 0} for i in range(40)]
        folder.write_rollouts(f"held-out-{step:05d}", rows)
    return folder.path


def rollout(name: str, step: int, i: int, lines: int) -> dict:
    code = "".join(f'    std::cout << "step {step} row {i} line {line}\\n"; // {HOSTILE}\n' for line in range(lines))
    verdict = VERDICTS[i % 4]
    return {
        "step": step,
        "problem": f"{name}-{i % 40}",
        "completion": f"```cpp\n#include <iostream>\nint main() {{\n{code}}}\n```",
        "verdict": verdict,
        "passed": 6 if verdict == "ACCEPTED" else 0,
        "total": 6,
        "tests": "AAAAAA" if verdict == "ACCEPTED" else "WAAAAA",
        "message": HOSTILE,
        "reward": 1.0 if verdict == "ACCEPTED" else 0.25,
        "advantage": 0.5,
        "tokens": 40,
    }


def test_collects_what_there_is(tmp_path: Path) -> None:
    data = run_data(write_run(tmp_path / "run", 3, 8), 1000)
    assert data["steps"] == [1, 2, 3] and data["curves"]["kl_base"] == [0.01, None, 0.03]
    assert len(data["rollouts"]["step"]) == 3 * 8 + 2 * 40 and data["left_out"] == 0
    assert data["verdicts"]["ACCEPTED"] == [2, 2, 2] and len(data["v"][0]) == 32
    assert [e["value"] for e in data["evaluations"]] == [0.4, 0.6]
    assert data["idle"] == {"device": [0.2] * 3, "graders": [0.1, 0.2, pytest.approx(0.3)]}
    assert data["timeline"]["steps"] == [[1, 6], [2, 12], [3, 18]]
    assert data["timeline"]["lanes"]["train"] == [[3, 6], [9, 12], [15, 18]]
    low, high = data["intervals"]["1"]
    assert 0 <= low < 0.25 < high <= 1
    problem = data["problems"]["train-3"]
    assert HOSTILE in problem["prompt"] and len(problem["tests"]) == 4 and data["note"] == ""
    json.dumps(data, allow_nan=False)


def test_a_bare_or_moved_run_is_shown_and_another_folder_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains no run"):
        run_data(tmp_path, 10)
    folder = write_run(tmp_path / "run", 2, 8)
    (folder / "train.jsonl").unlink()
    assert "no such file" in run_data(folder, 1000)["note"]
    started = RunFolder.create(str(tmp_path / "started"), "run")
    Settings(model="starter", dataset="starter").save(started.path / "config.yaml")
    data = run_data(started.path, 10)
    assert data["steps"] == [] and data["rollouts"]["step"] == []
    write_page([data], tmp_path / "empty.html")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", "{}"),
        ("metrics.jsonl", "[]"),
        ("metrics.jsonl", '{"step": 4, "seconds": 3}'),
        ("timeline.jsonl", '{"step": "x"}'),
        ("timeline.jsonl", '{"step": 4}'),
        ("evaluations.jsonl", '{"step": 4, "pass@1": 0.5}'),
        ("validation.jsonl", "null"),
        ("rollouts/step-00001.jsonl", '{"step": 1}'),
    ],
)
def test_a_line_of_another_shape_is_named(name: str, line: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 2, 8)
    with (folder / name).open("a") as out:
        out.write(f"{line}\n")
    count = len((folder / name).read_text().splitlines())
    with pytest.raises(ConfigError, match=f"{name}, line {count}: .*; the file is damaged$"):
        run_data(folder, 10)


@pytest.mark.parametrize("name", ["summary.json", "grader.json"])
def test_a_record_that_is_none_is_named(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 2, 8)
    (folder / name).write_text("[]\n")
    with pytest.raises(ConfigError, match=f"{name} is damaged"):
        run_data(folder, 10)


def test_an_evaluation_without_a_verdict_is_not_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 2, 8)
    RunFolder(folder).append("evaluations", {"step": 2, "pass@1": None})
    assert [point["value"] for point in run_data(folder, 10)["evaluations"]] == [0.4, 0.6]


def test_rollouts_over_the_limit_are_thinned_evenly_and_counted(tmp_path: Path) -> None:
    data = run_data(write_run(tmp_path / "run", 10, 8), 32)
    assert len(data["rollouts"]["step"]) == 32 and data["left_out"] == 10 * 8 + 80 - 32
    assert len(set(data["rollouts"]["step"])) >= 9
    whole = run_data(tmp_path / "run", 1000)
    assert whole["left_out"] == 0 and len(whole["intervals"]) == 10
    assert data["intervals"] == whole["intervals"] and data["messages"] == whole["messages"]


@pytest.mark.parametrize("settings", [{"dtype": "float16"}, {"kv_dtype": "fp8", "vllm": True}], ids=str)
def test_a_run_of_a_gpu_keeps_its_prompts_where_there_is_none(settings: dict, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 2, 8)
    stored = load_config(folder / "config.yaml")
    replace(stored, **settings).save(folder / "config.yaml")
    data = run_data(folder, 1000)
    assert data["problems"] and not data["note"]


def test_the_page_is_one_file_and_hostile_text_never_reaches_its_markup(tmp_path: Path) -> None:
    data = run_data(write_run(tmp_path / HOSTILE[9:15], 2, 8), 1000) | {"name": HOSTILE}
    write_page([data], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<script") == text.count("</script>") == 2 and "owned'" not in text.replace("&#x27;", "")
    addresses = set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}
    assert not addresses and "src=" not in re.sub(r"<title>.*?</title>", "", text) and "@import" not in text
    packed = re.search(r'id="data">([^<]*)<', text)
    assert packed is not None
    assert json.loads(gzip.decompress(base64.b64decode(packed.group(1))))["runs"] == [data]


def test_bytes_that_are_no_utf_8_do_not_stop_a_report(tmp_path: Path) -> None:
    write_page([{"name": "a", "text": "x\udcff"}], tmp_path / "report.html")
    (data,) = re.findall(r'id="data">([^<]*)<', (tmp_path / "report.html").read_text())
    assert json.loads(gzip.decompress(base64.b64decode(data)))["runs"][0]["text"] == "x\udcff"


def test_runs_of_one_name_keep_their_pictures_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / seed / "run", 1, 4) for seed in ("a", "b")]
    written = [path.name for path in write_report(runs, tmp_path / "both.html", 10, pictures=True)]
    assert {"a-run-solving.png", "b-run-solving.png"} < set(written) and len(set(written)) == len(written) == 11


def test_pictures_are_drawn(tmp_path: Path) -> None:
    from pipeline.report.pictures import draw

    paths = draw(run_data(write_run(tmp_path / "run", 3, 8), 1000), tmp_path)
    assert [path.name for path in paths] == ["solving.png", "scalars.png", "time.png", "timeline.png", "verdicts.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.integration
@pytest.mark.skipif(not chromium.found(), reason="no chromedriver here (Debian: apt-get install chromium-driver)")
def test_twenty_thousand_rollouts_in_a_real_browser(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "first", 100, 200, program_lines=30), write_run(tmp_path / "second", 3, 8)]
    runs = [run_data(folder, 20_000) for folder in folders]
    assert len(runs[0]["rollouts"]["step"]) == 20_000
    write_page(runs, tmp_path / "report.html")
    with chromium.Chromium(tmp_path / "profile") as browser:
        start = time.perf_counter()
        browser.open(tmp_path / "report.html")
        browser.wait_for("document.body.dataset.ready && document.querySelectorAll('#list .row').length")
        assert time.perf_counter() - start < 30
        browser.screenshot(tmp_path / "report.png")
        assert (tmp_path / "report.png").stat().st_size > 20_000
        assert browser.run("return document.querySelectorAll('.chart svg').length") >= 10
        assert browser.run("return document.querySelectorAll('#list .row').length") < 60  # only those in sight
        count = "document.getElementById('count').textContent"
        assert browser.run(f"return {count}").startswith("20,000 of 20,000")

        set_value = (
            "const node = document.getElementById(arguments[0]); node.value = arguments[1];"
            "const start = performance.now();"
            "node.dispatchEvent(new Event(node.tagName === 'SELECT' ? 'change' : 'input'));"
            "return performance.now() - start"
        )
        assert browser.run(set_value, "verdict", "COMPILE_ERROR") < 2000
        shown = int(str(browser.run(f"return {count}")).split()[0].replace(",", ""))
        assert shown == runs[0]["rollouts"]["verdict"].count("COMPILE_ERROR")
        chips = browser.run("return [...document.querySelectorAll('#list .chip')].map(chip => chip.textContent)")
        assert set(chips) == {"compile error"}
        browser.run(set_value, "least", "0.9")
        assert browser.run(f"return {count}").startswith("0 of")
        browser.run(set_value, "verdict", "")
        browser.run(set_value, "search", "row 8 ")
        assert 0 < int(str(browser.run(f"return {count}")).split()[0]) <= 102

        browser.run(set_value, "search", "")
        browser.run("const list = document.getElementById('list'); list.scrollTop = list.scrollHeight")
        browser.wait_for("Number(document.querySelector('#list .row').textContent.match(/^\\d+/)[0]) > 90")

        browser.run(set_value, "set", "held-out")
        browser.run("document.getElementById('pair').click()")
        titles = browser.run("return [...document.querySelectorAll('#detail h3')].map(h => h.textContent)")
        assert titles[0].startswith("before") and titles[1].startswith("after")
        programs = browser.run("return [...document.querySelectorAll('.program')].map(p => p.textContent)")
        assert "step 0 row 0 " in programs[0] and "step 100 row 0 " in programs[1] and HOSTILE in programs[0]
        for kind in "dtsc":  # directive, type, string, comment
            assert browser.run("return document.querySelectorAll('.program .' + arguments[0]).length", kind) >= 2
        assert HOSTILE in browser.run("return document.querySelector('.prompt').textContent")
        assert browser.run("return document.querySelectorAll('#detail table tr').length") == 5

        browser.run("document.querySelectorAll('.tabs button')[1].click()")
        browser.wait_for(f"{count}.startsWith('104 of 104')")
        assert browser.run("return document.title") == "Report: first, second"
        assert browser.run("return document.images.length") == 0


def test_messages_are_counted_without_their_places(tmp_path: Path) -> None:
    folder = RunFolder(write_run(tmp_path / "run", 1, 8))
    said = ["main.cpp:3:13: error: 'x' was not declared", "main.cpp:7:1: error: 'x' was not declared"]
    said += ["wrong answer on test 1", "wrong answer on test 12", "wrong answer on test 3", ""]
    rows = [
        {"step": 1, "problem": "p", "completion": "", "verdict": "COMPILE_ERROR" if "error" in text else "WRONG_ANSWER"}
        | ({"message": text} if text else {})
        for text in said
    ]
    for path in (folder.path / "rollouts").iterdir():
        path.unlink()
    folder.write_rollouts("step-00001", rows)
    assert run_data(folder.path, 100)["messages"] == [
        ["WRONG_ANSWER", "wrong answer on test ", 3, 0.5],
        ["COMPILE_ERROR", "error: 'x' was not declared", 2, 2 / 6],
    ]
