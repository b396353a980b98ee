"""Whether this machine can train: every part tried once, as a table of what was found and what to do about it.

The one place that catches any exception: a part that fails is a line of the table, and the parts that need it are
skipped. Nothing is installed or changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib import error, request

from data.sources.humaneval_x import NEEDS
from data.starter.generator import problems
from pipeline.config import STARTER, Settings
from pipeline.environment import has_gpu, machine_memory
from pipeline.evaluation.evaluate import prompt_ids
from pipeline.launch import prepare
from pipeline.policy.loading import load_policy
from pipeline.policy.models import choose_model, made_ready
from pipeline.rollout import Sampling
from pipeline.tools.cluster import faults, nodes_told
from rewards.extraction import extract_source
from rewards.grader import needs
from rewards.grader.pool import GraderPool
from rewards.grader.toolchains import compiler_version, find_toolchain
from rewards.problem import Problem, Test
from rewards.verdict import Status
from storage.cache import cache_root

ROOT = Path(__file__).resolve().parents[2]
OK, WARNING, FAILURE, SKIPPED = "ok", "warning", "FAILURE", "skipped"
DISK_WANTED, DISK_NEEDED = 20e9, 1e9  # bytes
HUB_SECONDS = 5
PROMPT_PROBLEMS = 4
TRIED_PYTHONS = ((3, 11), (3, 12))
SCALE = 0.05  # of the vector with which the refresh is tried

RIGHT = """Here it is.
```cpp
#include <bits/stdc++.h>
int main() { long long a, b; std::cin >> a >> b; std::cout << a + b; }
```"""
WRONG = RIGHT.replace("a + b", "a - b")
TESTS = "run python -m pytest tests/rewards to find the fault"
REPORT = "report this with the table above"


@dataclass(frozen=True)
class Check:
    """One line of the table. `advice` is empty where there is nothing to do."""

    name: str
    status: str
    found: str
    advice: str = ""


@dataclass
class Examination:
    """Checks in order; a later one can use what an earlier one made."""

    config: Settings
    checks: list[Check] = field(default_factory=list)
    pool: Any = None
    policy: Any = None
    completions: list[str] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)

    def add(self, name: str, check: Callable[[], tuple[str, str, str]], needs: Any = True, advice: str = "") -> None:
        """Run one check, unless what it needs is missing."""
        if not needs:
            self.checks.append(Check(name, SKIPPED, "depends on a check that failed"))
            return
        try:
            status, found, todo = check()
        except Exception as failure:  # noqa: BLE001 - any failure is what we are here to report
            reason = " ".join(str(failure).split())[:300] or type(failure).__name__
            status, found, todo = FAILURE, f"{type(failure).__name__}: {reason}", advice
        self.checks.append(Check(name, status, found, todo))


def examine(config: Settings, *, with_model: bool = True) -> list[Check]:
    """All checks. Without the model only the machine is looked at."""
    it = Examination(config)
    it.add("python", _python)
    it.add("gpu", _gpu, advice="nvidia-smi failed; reinstall the driver")
    it.add("packages", _packages)
    it.add("disk", _disk)
    it.add("memory", _memory)
    it.add("compiler", _compiler, advice="install g++ (Debian, Ubuntu: apt-get install g++)")
    it.add("sandbox", lambda: _sandbox(it), advice="install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap)")
    try:
        it.add("headers", lambda: _headers(it), it.pool, "run python -m pytest tests/rewards/grader/test_header.py")
        it.add("humaneval-x", _humaneval_x, it.pool)
        it.add("extract, compile, run", lambda: _grade(it), it.pool, TESTS)
        it.add("hub", lambda: _hub(config))
        if with_model:
            it.add("load", lambda: _load(it), it.pool, "run `make setup`; check --model")
            it.add("generate", lambda: _generate(it), it.policy, "try the other engine: --vllm or --no-vllm")
            it.add("grade what was generated", lambda: _grade_generated(it), it.pool and it.completions)
            it.add("refresh", lambda: _refresh(it), it.policy,
                   "run python -m pytest tests/pipeline/rollout/test_engines.py")  # fmt: skip
    finally:
        if it.policy is not None:
            it.policy.close()
        if it.pool is not None:
            it.pool.close(cancel=True)
    if config.ray_address is not None and with_model:
        it.add("cluster", lambda: _cluster(config))
    elif config.ray_address is not None:
        it.checks.append(Check("cluster", SKIPPED, "every node would load the model; leave out --machine-only"))
    return it.checks


def failed(checks: Sequence[Check]) -> bool:
    return any(check.status == FAILURE for check in checks)


# ------------------------------------------------------------------ the machine


def _python() -> tuple[str, str, str]:
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    if sys.version_info[:2] in TRIED_PYTHONS:
        return OK, found, ""
    return WARNING, found, "the pinned packages are tested with Python 3.11 and 3.12: make PYTHON=python3.12"


def _gpu() -> tuple[str, str, str]:
    if not has_gpu():
        return OK, "no NVIDIA GPU found: the CPU packages and the bundled starter model are used", ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    import torch

    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
        todo = "update the driver, or install the GPU packages: make setup"
        return FAILURE, f"{found}; torch cannot use it ({built})", todo
    return OK, " | ".join(found.splitlines()), ""


def pins(path: Path) -> dict[str, str]:
    """Package → pinned version of a requirements file."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    found = (re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line) for line in lines)
    return {match.group(1): match.group(2) for match in found if match}


def _packages() -> tuple[str, str, str]:
    path = ROOT / ("requirements.txt" if has_gpu() else "requirements-cpu.txt")
    wanted, missing, other = pins(path), [], []
    for name, pinned in wanted.items():
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            missing.append(name)
            continue
        if installed != pinned:
            other.append(f"{name} {installed} instead of {pinned}")
    if not missing and not other:
        return OK, f"all {len(wanted)} pins of {path.name} are installed", ""
    found = "; ".join([*(["missing " + ", ".join(missing[:6])] if missing else []), *other[:6]])
    return (FAILURE if missing else WARNING), found, f"run `make setup` (installs {path.name} into .venv)"


def _disk() -> tuple[str, str, str]:
    places = {"here": Path.cwd(), "cache": cache_root()}
    free = {}
    for name, place in places.items():
        while not place.exists():
            place = place.parent
        free[name] = shutil.disk_usage(place).free
    found = ", ".join(f"{bytes_ / 1e9:.0f} GB free {name}" for name, bytes_ in free.items())
    least = min(free.values())
    if least < DISK_NEEDED:
        return FAILURE, found, "free at least 1 GB, or set TINYLORA_CACHE and HF_HOME to a larger disk"
    if least < DISK_WANTED:
        return WARNING, found, "a 3B model needs about 20 GB in its caches; the starter needs none"
    return OK, found, ""


def _memory() -> tuple[str, str, str]:
    total = machine_memory()
    cores = len(os.sched_getaffinity(0))
    found = f"{total / 1e9:.0f} GB, {cores} cores for this process"
    if total < 4e9:
        return WARNING, found, "the starter with vLLM takes about 4 GB; generate with --no-vllm"
    return OK, found, ""


def _compiler() -> tuple[str, str, str]:
    toolchain = find_toolchain("cpp")
    return OK, f"{toolchain.name}, version {compiler_version(toolchain.compile[0])}", ""


def _hub(config: Settings) -> tuple[str, str, str]:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    choice = choose_model(config.model, config.hub)
    local = Path(choice.location).exists()
    try:
        with request.urlopen(request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS):
            return OK, f"{endpoint} answers", ""
    except (error.URLError, OSError, ValueError) as failure:
        reason = " ".join(str(getattr(failure, "reason", failure)).split())[:120]
        found = f"{endpoint} does not answer ({reason})"
    if local:
        return WARNING, f"{found}; {choice.name} is local", "needed only to download models and data sets"
    return WARNING, found, "check the network, or set HF_ENDPOINT to a mirror, or give a local folder with --model"


# ------------------------------------------------------------------ the graders


def _sandbox(it: Examination) -> tuple[str, str, str]:
    it.pool = GraderPool(it.config.grader_workers or 1, unsafe=it.config.unsafe_grader, quiet=True)
    about = it.pool.describe()
    found = f"tier {about['tier']} ({about['isolation']})"
    if about["tier"] == "A":
        return OK, found, ""
    return WARNING, found, f"for tier A: {about['why_not_better']}"


def _headers(it: Examination) -> tuple[str, str, str]:
    """Two programs with one prologue, then a third that its precompiled header should serve."""
    slower = "verdicts stay right, but compiling takes about four times as long"
    about = it.pool.describe()
    if it.pool.headers is None:
        return WARNING, f"no headers are made: {slower}", "use g++ as the compiler and --header-store above 0"
    problem = Problem("doctor", "", (Test("", ""),))
    prologue = "#include <bits/stdc++.h>\n"
    for number in range(3):
        verdict = it.pool.submit(f"{prologue}int main() {{ return 0 * {number}; }}\n", problem).result()
        it.pool.headers.wait()
    if verdict.header != "used":
        faults = "; ".join(f"{name}: {why}" for name, why in it.pool.headers.faults.items()) or "refused"
        return WARNING, f"no header can be used ({faults}); {slower}", "free space in /dev/shm, or use another g++"
    store = f"at most {it.pool.headers.limit_bytes >> 20} MB in {it.pool.headers.folder.parent}"
    if it.pool.headers.faults:
        name, why = next(iter(it.pool.headers.faults.items()))
        return WARNING, f"made and used, but not {name} ({why})", "programs with it compile more slowly"
    return OK, f"made and used, {store}; linker {about['linker']}", ""


def _humaneval_x() -> tuple[str, str, str]:
    """The tasks of the benchmark whose own code needs packages that are not here."""
    lacking = {header: why for header in NEEDS if (why := needs.missing_header(header))}
    if not lacking:
        return OK, "all 164 tasks can be graded", ""
    tasks = ", ".join(task for header in lacking for task in NEEDS[header])
    return WARNING, f"{tasks} cannot be graded on this machine and are skipped", "; ".join(lacking.values())


def _grade(it: Examination) -> tuple[str, str, str]:
    problem = Problem("doctor", "Add two numbers.", (Test("20 22\n", "42\n"), Test("-1 1\n", "0\n")))
    start = time.perf_counter()
    futures = [it.pool.submit(extract_source(text), problem) for text in (RIGHT, WRONG)]
    right, wrong = (future.result() for future in futures)
    seconds = time.perf_counter() - start
    if right.status is not Status.ACCEPTED or wrong.status is not Status.WRONG_ANSWER:
        found = f"a right program was judged {right.status}, a wrong one {wrong.status}: {right.diagnostics[:200]}"
        return FAILURE, found, TESTS
    return OK, f"a right program passes and a wrong one fails: {seconds:.1f} s for both", ""


# ------------------------------------------------------------------ the policy


def _load(it: Examination) -> tuple[str, str, str]:
    choice, config = prepare(replace(it.config, dataset=STARTER))
    choice = made_ready(choice)
    start = time.perf_counter()
    it.policy = load_policy(choice, config)
    it.config = config
    it.prompts = prompt_ids(it.policy.tokenizer, problems("held_out", PROMPT_PROBLEMS, 1))
    bank = it.policy.model.tinylora
    found = (
        f"{choice.name} ({config.quant}), {len(bank.names)} modules, {bank.v.numel()} scalars, engine "
        f"{it.policy.engine.name}, {time.perf_counter() - start:.0f} s"
    )
    return OK, found, ""


def _cluster(config: Settings) -> tuple[str, str, str]:
    """A replica on every node of a Ray cluster, beside one another."""
    _, resolved = prepare(replace(config, dataset=STARTER, replicas="auto"))
    told = nodes_told(resolved)
    if not told:
        return FAILURE, "no node has a GPU", "run `ray start` where there is one"
    wrong = faults(told)
    if wrong:
        return FAILURE, "; ".join(wrong), "make the nodes alike: the same checkout, `make setup`, the same model files"
    tiers = {about["tier"] for _, about in told if not isinstance(about, str)}
    names = ", ".join(name for name, _ in told)
    return OK, f"the same versions, weights and factors, grader tier {', '.join(tiers)}, on {names}", ""


def _sample(it: Examination, tokens: int, temperature: float) -> list[Any]:
    return it.policy.engine.generate(it.prompts, Sampling(tokens, temperature, 0), lambda row, completion: None)


def _generate(it: Examination) -> tuple[str, str, str]:
    start = time.perf_counter()
    completions = _sample(it, it.config.max_completion_length or 224, 1.0)
    seconds = time.perf_counter() - start
    tokens = sum(len(completion.token_ids) for completion in completions)
    it.completions = [it.policy.tokenizer.decode(c.token_ids, skip_special_tokens=True) for c in completions]
    if not tokens or any(x > 1e-3 for completion in completions for x in completion.log_probs):
        return FAILURE, f"{tokens} tokens, with log-probabilities above 0", "try the other engine: --vllm or --no-vllm"
    return OK, f"{len(completions)} completions, {tokens} tokens, {tokens / seconds:.0f} tokens/s", ""


def _grade_generated(it: Examination) -> tuple[str, str, str]:
    asked = problems("held_out", PROMPT_PROBLEMS, 1)
    sources = [extract_source(text) for text in it.completions]
    verdicts = [it.pool.submit(s, problem).result() for s, problem in zip(sources, asked, strict=True)]
    found = f"{sum(s is not None for s in sources)} of {len(sources)} hold a program; verdicts: " + ", ".join(
        verdict.status.name for verdict in verdicts
    )
    if any(verdict.status.name == "NO_VERDICT" for verdict in verdicts):
        return FAILURE, found, "a grader process failed twice; run python -m pytest tests/rewards"
    if all(source is None for source in sources):
        return WARNING, found, "the model writes no programs at all, so there is no reward to learn from"
    return OK, found, ""


def _refresh(it: Examination) -> tuple[str, str, str]:
    """The base, another vector, the base again: the middle one must differ, the outer two must not."""
    import torch

    bank, engine = it.policy.model.tinylora, it.policy.engine
    generator = torch.Generator().manual_seed(0)
    zero = torch.zeros(bank.v.shape)
    moved = torch.randn(bank.v.shape, generator=generator) * SCALE
    outputs = []
    for v in (zero, moved, zero):
        start = time.perf_counter()
        report = engine.refresh(v)
        seconds = time.perf_counter() - start
        outputs.append([(c.token_ids, c.log_probs) for c in _sample(it, 16, 0.0)])
    base, other, again = outputs
    if base == other:
        return FAILURE, "a new vector changes nothing: the engine does not serve the policy", REPORT
    if [ids for ids, _ in base] != [ids for ids, _ in again]:
        return FAILURE, "the zero vector does not bring the base back", REPORT
    milliseconds = 1000 * max(seconds, report.seconds)
    return OK, f"a new vector is served after {milliseconds:.1f} ms, and zeros restore the base", ""
