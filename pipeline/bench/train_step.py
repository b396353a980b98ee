"""The measurements behind `python scripts/bench.py train-step`: the training pass, shared prompts, and a whole step.

The pass: forward and backward of one batch through the adapted model, against the same model with the adapter switched
off, whose backward runs to the embeddings too. Shared prompts: the pass over a step's random tokens, each prompt
computed once for its completions, against completions that have a prompt each. The step: real training steps with real
grading. A model of random weights writes noise, so every completion is replaced by a program, a right one or a wrong
one, the moment it ends. Ends are drawn by the model itself: so many tokens of its vocabulary end a completion that
every `MEAN_LENGTH`-th does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.bench.form import Row, row
from pipeline.bench.programs import Programs, contest_tasks
from pipeline.bench.timing import device_seconds, once
from pipeline.config import RunConfig
from pipeline.policy.loading import Policy, load_policy
from pipeline.policy.models import ModelChoice
from pipeline.rollout.streaming import Grading, StreamingGrader
from pipeline.run_folder import RunFolder
from pipeline.tasks.graders import start_graders
from pipeline.training.logprobs import completion_log_probs
from pipeline.training.packing import packed, within_budget
from rewards.grader.pool import GraderPool
from rewards.problem import Problem
from rewards.verdict import Verdict

BAR_PASS, BAR_STEP, BAR_MEMORY = 1.05, 1.05, 1.02
SHARED = (
    (32, 8, 323, 1 / 2),
    (16, 16, 800, 1 / 3),
)  # prompts, completions of each, tokens of a prompt, bar on the time
SHARED_CPU = ((4, 8, 128, 1.0),)
MEAN_LENGTH = 192
WORDS = "read numbers then print their sum as one line of output after sorting every value found in the input "


def measure(choice: ModelChoice, config: RunConfig, tokens: int, steps: int, gpu: bool) -> list[Row]:
    """Rows of `steps` training steps with the settings of `config`, and of the pass over about `tokens`, in full
    rows; none of the pass for 0."""
    with start_graders(config) as pool:
        policy = load_policy(choice, config)
        result = _step_rows(policy, config, pool, steps, gpu)
        if tokens:
            for shape in SHARED if gpu else SHARED_CPU:
                result += _shared_rows(policy, config, *shape, gpu)
            result += _pass_rows(policy, max(1, tokens // config.max_length), config.max_length, gpu)
        policy.close()
    return result


def _shared_rows(
    policy: Policy, config: RunConfig, groups: int, size: int, length: int, bar: float, gpu: bool
) -> list[Row]:
    """Seconds and memory of the training pass over `groups` × `size` completions of `MEAN_LENGTH` tokens on average,
    as `TinyLoRATrainer.train_on` makes it."""
    import torch

    model, bank = policy.model, policy.model.tinylora
    budget = policy.tokens_of_a_pass(config)
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(5, model.config.vocab_size, (count,), generator=generator).tolist()

    prompts = [prompt for prompt in [tokens(length) for _ in range(groups)] for _ in range(size)]
    completions = [tokens(MEAN_LENGTH // 2 + MEAN_LENGTH * index // len(prompts)) for index in range(len(prompts))]
    completions = [completions[index] for index in torch.randperm(len(prompts), generator=generator).tolist()]
    weights = torch.randn(len(prompts), 2 * MEAN_LENGTH, generator=generator).to(bank.v.device)

    def train(shared: bool) -> int:
        """Returns the tokens computed."""
        computed = 0
        for rows in within_budget(prompts, completions, budget, sharing=None if shared else range(len(prompts))):
            own = [prompts[i] for i in rows], [completions[i] for i in rows]
            pack = packed(*own, bank.v.device, sharing=None if shared else rows)
            computed += pack.ids.numel()
            with bank.per_row(pack.owners, pack.count):
                log_probs, _ = completion_log_probs(model, pack, weights.shape[1], config.temperature)
                (log_probs * weights[rows]).sum().backward()
        bank.v.grad = None
        return computed

    model.train()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    peaks, computed = {}, {}
    for turn in range(4):
        for shared in seconds:
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            taken = once(lambda shared=shared: computed.update({shared: train(shared)}))  # type: ignore[misc]
            if gpu:
                peaks[shared] = torch.cuda.max_memory_allocated() / 1e9
            seconds[shared] += [taken] if turn else []  # the first one warms up
    what = f"training pass, {groups * size} completions, {size} behind a prompt of {length} tokens"
    ours, apart = (statistics.median(seconds[shared]) for shared in (True, False))
    rows = [
        row(f"{what}: prompts shared, against separate rows", ours, "s", baseline=apart, at_most=bar),
        row("of it: tokens computed", computed[True], "tokens", baseline=computed[False]),
    ]
    if gpu:
        rows.append(row("of it: peak memory", peaks[True], "GB", baseline=peaks[False], at_most=BAR_MEMORY))
    return rows


def _pass_rows(policy: Policy, count: int, tokens: int, gpu: bool) -> list[Row]:
    import torch

    model, bank = policy.model, policy.model.tinylora
    rounding = bank.merger.rounding if bank.merger else None
    model.gradient_checkpointing_disable()
    model.train()
    if gpu:
        torch.cuda.set_per_process_memory_fraction(1.0)
    generator = torch.Generator().manual_seed(0)
    device = bank.v.device
    ids = torch.randint(5, model.config.vocab_size, (count, tokens), generator=generator).to(device)
    target = torch.randn(count, tokens, model.config.hidden_size, generator=generator).to(device, model.dtype)
    hook = model.get_input_embeddings().register_forward_hook(lambda *_: _[-1].requires_grad_())

    def forward_backward() -> None:
        (model.model(input_ids=ids, use_cache=False).last_hidden_state * target).sum().backward()
        bank.v.grad = None

    def frozen() -> None:
        with bank.disabled():
            forward_backward()

    seconds: dict[str, list[float]] = {"frozen": [], "served": [], "merged": [], "beside": []}
    with torch.no_grad():
        bank.v.normal_(std=0.01, generator=torch.Generator(device).manual_seed(0))
    for _ in range(5):  # in turns, so that a change of the machine hits all of them
        for name in seconds:
            bank.merge_with(None if name == "beside" else rounding or "stochastic")
            policy.engine.refresh(bank.v.detach())
            if name != "served":
                bank.served.drop()
            seconds[name].append(device_seconds(frozen if name == "frozen" else forward_backward, repeats=2, warm_up=1))
    hook.remove()
    bank.merge_with(rounding)
    with torch.no_grad():
        bank.v.zero_()
    base, served, merged, beside = (1000 * statistics.median(seconds[name]) for name in seconds)
    what = f"forward + backward, {count} × {tokens} tokens"
    return [
        row(f"{what}: the frozen model", base, "ms"),
        row(f"{what}: TinyLoRA as in a run, on the engine's weights", served, "ms", baseline=base,
            at_most=BAR_PASS if gpu else None),
        row(f"{what}: TinyLoRA, weights merged anew in each pass", merged, "ms", baseline=base),
        row(f"{what}: TinyLoRA beside the layers", beside, "ms", baseline=base),
    ]  # fmt: skip


def problems_of_length(tokenizer: Any, count: int, tokens: int) -> list[Problem]:
    """`count` problems of `pipeline/bench/grader.py`, their statements about `tokens` tokens long."""
    problems = []
    for index, problem in enumerate(task.problem for task in contest_tasks(count)):
        words = (f"Problem {index}. " + WORDS * tokens).split()
        low, high = 1, len(words)
        while low < high:  # the longest statement that fits
            middle = (low + high + 1) // 2
            ids = tokenizer(" ".join(words[:middle])).input_ids
            low, high = (middle, high) if len(ids) <= tokens else (low, middle - 1)
        problems.append(replace(problem, statement=" ".join(words[:low])))
    return problems


class ProgramGrading(Grading):
    """A batch in which the program of its row stands in the place of every completion."""

    def __init__(self, sources: Sequence[str], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sources = sources

    def grade(self, row: int, completion: str) -> Future[Verdict]:
        return super().grade(row, f"```cpp\n{self._sources[row]}```")


class ProgramGrader(StreamingGrader):
    """Grades a program in the place of every completion, as `Programs` gives them."""

    def __init__(self, pool: GraderPool, problems: Sequence[Problem]) -> None:
        super().__init__(pool)
        self.programs = Programs(len(problems))
        self.batches: list[list[tuple[str, Problem]]] = []

    def grading(self, problems: Sequence[Problem], on_graded: Callable[[Verdict], None] | None) -> Grading:
        batch = [(self.programs.of(index, problem), problem) for index, problem in enumerate(problems)]
        self.batches.append(batch)
        return ProgramGrading([source for source, _ in batch], self.grade, problems, on_graded)

    def seconds_alone(self) -> float:
        """Median seconds of grading one batch after another, with nothing else to do."""
        assert self.pool is not None
        pool = self.pool

        def grade(batch: list[tuple[str, Problem]]) -> None:
            for future in [pool.submit(f"{source}// alone\n", problem) for source, problem in batch]:  # not remembered
                future.result()

        return statistics.median(once(lambda batch=batch: grade(batch)) for batch in self.batches)  # type: ignore[misc]


def timed_steps(
    policy: Policy, grader: StreamingGrader, problems: list[Problem], config: RunConfig, steps: int
) -> tuple[list[dict[str, Any]], list[float]]:
    """Make one training step, which compiles, and `steps` more; their records, and the seconds of each of the latter
    from the end of the one before."""
    from pipeline.training.roles import trainer_of

    records: list[dict[str, Any]] = []
    ends: list[float] = []

    def on_step(record: dict[str, Any]) -> None:
        records.append(record)
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="tinylora-bench-") as name:
        folder = RunFolder.create(str(Path(name) / "run"), "bench")
        trainer_of(policy)(policy, grader, problems, replace(config, steps=steps + 1), folder, on_step).train()
    return records, [after - before for before, after in zip(ends[:-1], ends[1:], strict=True)]


def _step_rows(policy: Policy, config: RunConfig, pool: Any, steps: int, gpu: bool) -> list[Row]:
    problems = problems_of_length(policy.tokenizer, 4 * config.prompts_per_step, config.max_prompt_length * 3 // 4)
    vocabulary = policy.model.config.vocab_size
    policy.engine._eos_token_ids = list(range(100, 100 + max(1, vocabulary // MEAN_LENGTH)))  # type: ignore[attr-defined]
    grader = ProgramGrader(pool, problems)
    records, walls = timed_steps(policy, grader, problems, config, steps)

    def median(name: str) -> float:
        return statistics.median(record[name] for record in measured)

    measured = records[1:]  # the first step compiles
    phases = {name: statistics.median(r["seconds"][name] for r in measured) for name in measured[0]["seconds"]}
    grade = grader.seconds_alone()
    generate = phases["generate"] + phases["log_probs"]  # the comparison with the base runs beside the graders too
    bound = max(generate, grade) + phases["backward"] + phases["refresh"]
    size = f"{config.prompts_per_step} × {config.num_generations} completions"
    what = f"step of {size} of at most {config.max_completion_length} tokens"
    rows = [
        row(f"{what}, against max(generate, grade) + train + refresh", statistics.median(walls), "s",
            baseline=bound, at_most=BAR_STEP if gpu else None),
        *(row(f"of it: {name}", seconds, "s") for name, seconds in phases.items()),
        row("the step's programs graded alone", grade, "s"),
        row("share of grading hidden behind generation", median("grading_hidden"), "share"),
        row("generation in the step", median("tokens_per_second"), "tokens/s"),
        row("tokens of a step", median("tokens"), "tokens"),
        row("sequences generated at a time, at most", policy.engine.seats, "sequences"),  # type: ignore[attr-defined]
        row("completions preempted, of all steps", policy.engine.preemptions, "times"),  # type: ignore[attr-defined]
    ]  # fmt: skip
    if gpu:
        peak = max(r["gpu_memory"] for r in records)
        rows.append(row("peak memory of the run", peak, "GB", at_most=config.gpu_memory))
    return rows
