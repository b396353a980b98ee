"""The measurements behind `python scripts/bench.py mismatch`: how far engine and trainer are from one policy.

A real training run gives the vectors of its first steps. Every way to serve the update then generates from several of
them, and the trainer computes the same tokens' log-probabilities as it does in training in that way: the
mismatch is the mean k3 KL per token. The noise floor is the same at v = 0, where both sides hold the base and only
their arithmetic differs. One more way serves the checkpoint's own weights where the trainer holds them in 4 bits.

What engine and trainer share they would get wrong together, so both are held against the policy of the exact update
as well (`exact.py`): by k3 on fixed tokens, and by the slope of their Δ log p against v = 0 on that of the exact one,
which is 1 where the update arrives in full.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.bench.contenders import load_plain
from pipeline.bench.exact import ExactPolicy
from pipeline.bench.form import Row, row
from pipeline.config import RunConfig
from pipeline.environment import has_gpu
from pipeline.evaluation.evaluate import fitting_problems, prompt_ids
from pipeline.policy.loading import Policy, load_engine, load_policy
from pipeline.policy.models import ModelChoice
from pipeline.rollout import Sampling
from pipeline.rollout.streaming import StreamingGrader
from pipeline.run_folder import RunFolder
from pipeline.tasks import task_of
from pipeline.tasks.graders import start_graders
from pipeline.tasks.problem_sets import load_problem_sets
from pipeline.training.logprobs import kl_k3, log_probs_without_gradient

FLOOR_BATCHES = 3
MOST_VECTORS = 7  # of the training run, evenly spaced, that every way is measured at
BAR_FLOOR, BAR_SLOPE, SLOPE_FROM = 1.2, 0.05, 0.01
BAR_FLOAT32 = 1e-9  # k3 per token between two ways to compute one policy in float32
SCALES = (0.003, 0.01, 0.03)  # rms of v
DEFAULT = "merged, stochastic"
FOREIGN = "merged into the checkpoint's own weights, stochastic"


def measure(choice: ModelChoice, config: RunConfig, steps: int, gpu: bool) -> list[Row]:
    """Rows for `steps` training steps of the settings in `config`; the bars hold on a GPU."""
    task = task_of(config)
    sets = load_problem_sets(config)
    with start_graders(config) as pool:
        policy = load_policy(choice, config)
        problems, _ = fitting_problems(policy.tokenizer, sets.train, config.max_prompt_length, task)
        vectors, logged = _train(policy, StreamingGrader(pool, task), problems, config, steps)
    chosen = prompt_ids(policy.tokenizer, problems[: config.prompts_per_step], task)
    prompts = [ids for ids in chosen for _ in range(config.num_generations)]
    bench = _Bench(policy, config, prompts, Sampling(config.max_completion_length))
    exact = ExactPolicy(choice.location, policy.model)
    direction = bench.direction()
    fixed = [completion.token_ids for completion in bench.generate(0 * direction, seed=-1)]
    expected = {scale: _moved(exact, scale * direction, prompts, fixed) for scale in (0.0, *SCALES)}
    rows = [row(f"logged in training, mean of {steps} steps", statistics.mean(logged), "k3 per token")]
    for title, serve in bench.ways(choice).items():
        serve()
        floor = statistics.mean(bench.mismatch(0 * direction, 1000 + i) for i in range(FLOOR_BATCHES))
        every = max(1, -(-steps // MOST_VECTORS))
        mean = statistics.mean(bench.mismatch(v, step) for step, v in enumerate(vectors) if step % every == 0)
        what = f"{title}: mismatch over {steps} steps against its floor at v = 0"
        bar = BAR_FLOOR if gpu and title == DEFAULT else None
        rows.append(row(what, mean, "k3 per token", baseline=floor, at_most=bar))
        for side, log_probs in (("engine", bench.engine_log_probs), ("trainer", bench.trainer_log_probs)):
            found = {scale: log_probs(scale * direction, fixed) for scale in expected}
            rows += exact_rows(f"{title}: {side}", found, expected, gpu, barred=title != FOREIGN)
    bench.policy.close()
    return rows


def _moved(exact: ExactPolicy, v: Any, prompts: list[list[int]], completions: list[list[int]]) -> Any:
    exact.move_to(v)
    return exact.log_probs(prompts, completions)


def exact_rows(what: str, found: dict[float, Any], expected: dict[float, Any], gpu: bool, barred: bool) -> list[Row]:
    """One side against the exact policy. Both: rms of v, 0 among them → log-probabilities (tokens,) of fixed tokens.

    Both kinds of row are barred: in float32 the distance, at every v; in bf16, whose noise hides a small fault of it,
    the slope alone, at updates that are larger than the noise. `barred` False leaves the bars out.
    """
    import torch

    rows = []
    bar = BAR_FLOAT32 if barred and not gpu else None
    for scale in expected:
        difference = found[scale] - expected[scale]
        distance = kl_k3(difference, torch.ones_like(difference))
        rows.append(row(f"{what} against the exact update, rms(v) = {scale:g}", distance, "k3 per token", at_most=bar))
        if scale:
            change, exact = found[scale] - found[0.0], expected[scale] - expected[0.0]
            slope = float((change * exact).sum() / exact.square().sum())
            title = f"{what}'s slope on the exact update, rms(v) = {scale:g}"
            ok = abs(slope - 1) <= BAR_SLOPE if barred and scale >= SLOPE_FROM else None
            rows.append(Row(title, slope, "Δ/Δ", bar="" if ok is None else f"1 ± {BAR_SLOPE:g}", ok=ok))
    return rows


def _train(
    policy: Policy, grader: StreamingGrader, problems: Any, config: RunConfig, steps: int
) -> tuple[list[Any], list[float]]:
    """The vector before each of `steps` training steps, and the mismatch that each step logged."""
    from pipeline.training.trainer import TinyLoRATrainer

    bank = policy.model.tinylora
    vectors, logged = [bank.v.detach().clone()], []

    def on_step(record: dict[str, Any]) -> None:
        vectors.append(bank.v.detach().clone())
        logged.append(record.get("mismatch") or 0.0)

    with tempfile.TemporaryDirectory(prefix="tinylora-bench-") as name:
        folder = RunFolder.create(str(Path(name) / "run"), "bench")
        TinyLoRATrainer(policy, grader, problems, replace(config, steps=steps), folder, on_step).train()
    return vectors[:steps], logged


class _Bench:
    """One policy, served in one way after another."""

    def __init__(self, policy: Policy, config: RunConfig, prompts: list[list[int]], sampling: Any) -> None:
        self.policy, self.config, self.prompts, self.sampling = policy, config, prompts, sampling
        self.model, self.bank = policy.model, policy.model.tinylora
        self.rounding: Any = None  # of the trainer's own forward pass

    def direction(self) -> Any:
        """A fixed random vector of rms 1."""
        import torch

        direction = torch.randn(self.bank.v.shape, generator=torch.Generator().manual_seed(0))
        return (direction / direction.square().mean().sqrt()).to(self.bank.v.device)

    def ways(self, choice: ModelChoice) -> dict[str, Callable[[], None]]:
        """What to call to serve in each way. From lowrank on each replaces the engine."""
        ways: dict[str, Callable[[], None]] = {
            DEFAULT: lambda: self._merge("stochastic"),
            "merged, nearest": lambda: self._merge("nearest"),
        }
        if self.config.quant == "nf4":
            ways[FOREIGN] = lambda: self._merge_foreign(choice)
        ways["lowrank"] = lambda: self._engine(choice, refresh="lowrank")
        if self.config.quant == "nf4":
            ways["merged layer by layer from packed weights"] = lambda: self._engine(choice, engine_weights="nf4")
            ways["lowrank on packed weights"] = lambda: self._engine(choice, engine_weights="nf4", refresh="lowrank")
        if has_gpu():
            ways["merged, stochastic, keys and values in fp8"] = lambda: self._engine(choice, kv_dtype="fp8")
        return ways

    def _merge(self, rounding: Any, bases: Any = None) -> None:
        worker: Any = self.policy.engine.worker  # type: ignore[attr-defined]
        worker.tinylora_merger = self.bank.merger_into(worker.tinylora_weights, rounding, bases)
        self.rounding = rounding

    def _merge_foreign(self, choice: ModelChoice) -> None:
        plain = load_plain(choice.location)
        dtype = self.bank.layers[0].dtype
        self._merge("stochastic", [plain.get_submodule(name).weight.detach().to(dtype) for name in self.bank.names])

    def _engine(self, choice: ModelChoice, **settings: Any) -> None:
        self.policy.engine.close()
        config = replace(self.config, rounding=None if "refresh" in settings else "stochastic", **settings)
        self.policy = replace(self.policy, engine=load_engine(choice, config, self.policy.model, self.policy.tokenizer))
        self.rounding = config.rounding

    def generate(self, v: Any, seed: int) -> list[Any]:
        self.policy.engine.refresh(v)
        return self.policy.engine.generate(self.prompts, replace(self.sampling, seed=seed + 1), lambda *_: None)

    def trainer_log_probs(self, v: Any, completions: list[list[int]]) -> Any:
        """Log-probabilities of all completion tokens, one after another, computed as the engine is served now."""
        import torch

        with torch.no_grad():
            self.bank.v.copy_(v)
        self.bank.merge_with(self.rounding)
        width, budget = max(map(len, completions)), self.config.micro_batch_tokens
        values, _ = log_probs_without_gradient(self.model, self.prompts, completions, width, 1.0, budget)
        return torch.cat([row[: len(tokens)] for row, tokens in zip(values, completions, strict=True)])

    def engine_log_probs(self, v: Any, completions: list[list[int]]) -> Any:
        """The same from the engine, which reads the completions as part of the prompt."""
        import torch
        from vllm import SamplingParams

        self.policy.engine.refresh(v)
        rows = [{"prompt_token_ids": p + c} for p, c in zip(self.prompts, completions, strict=True)]
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self.policy.engine.llm.generate(rows, params, use_tqdm=False)  # type: ignore[attr-defined]
        values = []
        for prompt, completion, output in zip(self.prompts, completions, outputs, strict=True):
            entries = output.prompt_logprobs[len(prompt) :]
            values += [entry[token].logprob for entry, token in zip(entries, completion, strict=True)]
        return torch.tensor(values, device=self.bank.v.device)

    def mismatch(self, v: Any, seed: int) -> float:
        import torch

        completions = self.generate(v, seed)
        sampled = torch.tensor([p for completion in completions for p in completion.log_probs])
        trainer = self.trainer_log_probs(v, [completion.token_ids for completion in completions])
        difference = trainer - sampled.to(trainer.device)
        return kl_k3(difference, torch.ones_like(difference))
