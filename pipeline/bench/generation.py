"""The measurements behind `python scripts/bench.py generation`: tokens per second of several ways to sample groups.

    ours      vLLM as training runs it: one request per completion, log-probabilities, no text
    lowrank   the same with --refresh lowrank: ΔW next to the frozen weights
    nf4       the same with --engine-weights nf4: layers merged from the trainer's packed weights when they compute
    nf4-lowrank, fp8, float16    packed weights with ΔW next to them; --kv-dtype fp8; --dtype float16
    groups    the same engine with one request of n samples per prompt; it reports only whole groups
    trl       vLLM as TRL's own colocated engine runs it
    generate  Unsloth's `generate` on the trained model, without log-probabilities (the logits would not fit)

Every contender gets the same random prompts, in a process of its own (see `contenders.py`), one after the other, so
that each has the whole machine. The roofline is what memory traffic alone allows: see `roofline`. This module starts
the processes and makes the rows; it imports neither torch nor the libraries.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.bench.form import Row, row
from pipeline.environment import has_gpu
from pipeline.policy.models import ModelChoice
from storage.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ("ours", "lowrank", "trl", "generate")  # processes; "ours" also times "groups"
VARIANTS: dict[str, dict[str, Any]] = {  # settings of "ours" that are different
    "lowrank": {"refresh": "lowrank"},
    "nf4": {"quant": "nf4", "engine_weights": "nf4"},
    "nf4-lowrank": {"quant": "nf4", "engine_weights": "nf4", "refresh": "lowrank"},
    "fp8": {"kv_dtype": "fp8"},
    "float16": {"dtype": "float16"},
    "unshared": {},  # and FlashAttention in every step: see `contenders.py`
}
CONTENDERS = tuple(dict.fromkeys((*DEFAULT, *VARIANTS)))
NEED_VLLM = ("ours", "trl", *VARIANTS)
TITLES = {
    "ours": "vLLM as we run it",
    "groups": "vLLM, one request per group",
    "lowrank": "vLLM, --refresh lowrank",
    "nf4": "vLLM, --engine-weights nf4",
    "nf4-lowrank": "vLLM, --engine-weights nf4 --refresh lowrank",
    "fp8": "vLLM, --kv-dtype fp8",
    "float16": "vLLM, --dtype float16",
    "unshared": "vLLM, a prompt read for each completion",
    "trl": "vLLM as TRL runs it",
    "generate": "Unsloth generate, no log-probabilities",
}
REPEATS = {"ours": 3, "trl": 2, "generate": 1, **dict.fromkeys(VARIANTS, 3)}
TIMEOUT = 3600.0  # seconds for one contender, from its start to its end
TAIL_LINES = 30
BAR_SHAPE = "3b"  # for which there is an absolute bar
BAR_RATE, BAR_TRL, BAR_GENERATE = 45_000, 2, 20


class BenchmarkError(UserError, RuntimeError):
    """A contender that cannot run here; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Case:
    """`samples` completions of at most `new_tokens` for each of `prompts` prompts of `prompt_tokens`."""

    prompts: int
    samples: int
    prompt_tokens: int
    new_tokens: int

    @property
    def rows(self) -> int:
        """Completions in all."""
        return self.prompts * self.samples

    @property
    def name(self) -> str:
        return f"{self.prompts}x{self.samples}, {self.prompt_tokens}+{self.new_tokens}"


GPU_CASES = (Case(64, 8, 256, 256), Case(8, 8, 256, 256), Case(32, 8, 512, 512))
CPU_CASES = (Case(16, 8, 64, 64), Case(4, 8, 64, 64))


def default_cases(gpu: bool) -> tuple[Case, ...]:
    """The cases for a 3B model on a GPU, or for the starter on a CPU; the first one is the main case."""
    return GPU_CASES if gpu else CPU_CASES


@dataclass(frozen=True, slots=True)
class Task:
    """What one contender's process is asked to do; travels as JSON.

    largest: a case as large as any of the benchmark in rows and in lengths, for which the engine is built. gpu_memory:
    GB for trainer and engine together, None for the default share of the card. chunk: rows that `generate` takes at
    once.
    """

    contender: str
    choice: ModelChoice
    cases: tuple[Case, ...]
    largest: Case
    repeats: int
    gpu_memory: float | None
    chunk: int

    @classmethod
    def read(cls, path: str | Path) -> Task:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        content["choice"] = ModelChoice(**content["choice"])
        content["cases"] = tuple(Case(**case) for case in content["cases"])
        content["largest"] = Case(**content["largest"])
        return cls(**content)


def make_tasks(
    choice: ModelChoice, cases: Sequence[Case], contenders: Sequence[str], gpu_memory: float | None, chunk: int
) -> list[Task]:
    """One task for each contender. `generate` is slow, so it has only the main and the smallest case."""
    smallest = min(cases, key=lambda case: case.rows * case.new_tokens)
    largest = replace(
        max(cases, key=lambda case: case.rows),
        prompt_tokens=max(case.prompt_tokens for case in cases),
        new_tokens=max(case.new_tokens for case in cases),
    )
    return [
        Task(
            contender=name,
            choice=choice,
            cases=tuple(dict.fromkeys((cases[0], smallest))) if name == "generate" else tuple(cases),
            largest=largest,
            repeats=REPEATS.get(name, 1),
            gpu_memory=gpu_memory,
            chunk=chunk,
        )
        for name in contenders
    ]


def run_task(task: Task, timeout: float = TIMEOUT) -> dict[str, Any]:
    """What the contender measured, from a fresh process. Raises `BenchmarkError` with the end of what it printed."""
    with tempfile.TemporaryDirectory(prefix="tinylora-bench-") as folder:
        asked, answered, printed = (Path(folder) / name for name in ("task.json", "result.json", "printed"))
        asked.write_text(json.dumps(asdict(task)), encoding="utf-8")
        command = [sys.executable, "-m", "pipeline.bench.contenders", str(asked), str(answered)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with printed.open("wb") as stream:
            try:
                done = subprocess.run(  # kills the process on a timeout
                    command,
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": path},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    timeout=timeout,
                    check=False,
                )
                failure = f"failed with exit status {done.returncode}" if done.returncode else ""
            except subprocess.TimeoutExpired:
                failure = f"did not end within {timeout:g} s and was stopped"
        if failure:
            tail = printed.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
            raise BenchmarkError("\n".join([f"the contender '{task.contender}' {failure}; it printed last:", *tail]))
        return json.loads(answered.read_text(encoding="utf-8"))


def roofline(case: Case, weight_bytes: float, kv_bytes_per_token: float, bandwidth: float) -> float:
    """Tokens/s if decoding all rows at once took no longer than reading the memory it must read.

    For every new token t all weights are read once, and for every row the keys and values of the prompt and of the t
    tokens before it. Bytes, and bytes per second; compute, prefill and sharing of prefixes are left out.
    """
    tokens_read = sum(case.rows * (case.prompt_tokens + t) for t in range(case.new_tokens))
    seconds = (case.new_tokens * weight_bytes + tokens_read * kv_bytes_per_token) / bandwidth
    return case.rows * case.new_tokens / seconds


def make_rows(cases: Sequence[Case], results: Mapping[str, Mapping[str, Any]], gpu: bool) -> list[Row]:
    """Rows from what each contender measured. Only a GPU has bars, and only in the main case, the first of `cases`."""
    ours = results.get("ours", {})
    rates: dict[str, dict[str, float]] = {}
    for result in results.values():
        for contender, by_case in result["rates"].items():
            rates[contender] = {name: timing["rate"] for name, timing in by_case.items()}
    rows = []
    for case in cases:
        barred = gpu and case == cases[0]
        what = f"generate {case.name}:"
        measured = {name: rates[name][case.name] for name in TITLES if case.name in rates.get(name, {})}
        for name, rate in measured.items():
            absolute = BAR_RATE if name == "ours" and barred and ours["shape"] == BAR_SHAPE else None
            rows.append(row(f"{what} {TITLES[name]}", rate, "tokens/s", at_least=absolute))
        if "ours" not in measured:
            continue
        for name, bar in (*((variant, None) for variant in VARIANTS), ("trl", BAR_TRL), ("generate", BAR_GENERATE)):
            if name in measured:
                compared = f"{what} ours against {TITLES[name]}"
                least = bar if barred else None
                rows.append(row(compared, measured["ours"], "tokens/s", baseline=measured[name], at_least=least))
        bound = roofline(case, ours["weight_bytes"], ours["kv_bytes_per_token"], ours["bandwidth"])
        rows.append(row(f"{what} the roofline", bound, "tokens/s"))
        rows.append(row(f"{what} ours", measured["ours"] / bound, "of roofline"))
        produced = ours["rates"]["ours"][case.name]["tokens"] / (case.rows * case.new_tokens)
        rows.append(row(f"{what} tokens that ours produced", produced, "of the roofline"))
    if "trl_sync_seconds" in ours:
        refresh, sync = 1000 * ours["refresh_seconds"], 1000 * ours["trl_sync_seconds"]
        rows.append(row("refresh: ours against TRL's sync_weights on our engine", refresh, "ms", baseline=sync))
    for name in VARIANTS:
        if name in results:
            rows.append(row(f"refresh: {TITLES[name]}", 1000 * results[name]["refresh_seconds"], "ms"))
    if "trl" in results:
        rows.append(row("refresh: TRL's sync_weights on its own engine", 1000 * results["trl"]["sync_seconds"], "ms"))
    return rows


def check_contenders(contenders: Sequence[str]) -> None:
    """Raise `BenchmarkError` for a contender that is not known or whose engine is not installed."""
    for name in contenders:
        if name not in CONTENDERS:
            raise BenchmarkError(f"there is no contender '{name}'; choose from {', '.join(CONTENDERS)}")
        if name in NEED_VLLM and importlib.util.find_spec("vllm") is None:
            raise BenchmarkError(f"the contender '{name}' needs vLLM, which is not installed; run `make setup`")
        if name == "unshared" and not has_gpu():
            raise BenchmarkError("the contender 'unshared' needs a GPU: on a CPU every completion reads its prompt")


def measure(
    choice: ModelChoice,
    cases: Sequence[Case] | None = None,
    contenders: Sequence[str] = DEFAULT,
    gpu_memory: float | None = None,
    chunk: int = 512,
) -> list[Row]:
    """All rows; `cases` are by default those of this machine. Raises `BenchmarkError` where a contender cannot run."""
    gpu = has_gpu()
    cases = default_cases(gpu) if cases is None else cases
    check_contenders(contenders)
    tasks = make_tasks(choice, cases, contenders, gpu_memory, chunk)
    results = {}
    for task in tasks:  # minutes each on a large model, so each tells at once what it measured
        results[task.contender] = run_task(task)
        for name, rates in results[task.contender]["rates"].items():
            measured = ", ".join(f"{case} {timing['rate']:,.0f} tokens/s" for case, timing in rates.items())
            print(f"{TITLES[name]}: {measured}", flush=True)
    return make_rows(cases, results, gpu)
