"""The measurements behind `python scripts/bench.py mismatch`: how far engine and trainer are from one policy.

A real training run gives the vectors of its first steps. Every way to serve the update then generates from several of
them, and the trainer computes the same tokens' log-probabilities as it does in training in that way: the
mismatch is the mean k3 KL per token. The noise floor is the same at v = 0, where both sides hold the base and only
their arithmetic differs. One more way serves the checkpoint's own weights where the trainer holds them in 4 bits.

The slope says whether an update reaches the engine in full: Δ log p of fixed tokens against v = 0, the engine's
regressed on the trainer's. It is given against the trainer in that way, and against the exact update beside its layers.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.bench.contenders import load_plain
from pipeline.bench.form import Row, row
from pipeline.config import RunConfig
from pipeline.evaluation.evaluate import fitting_problems, prompt_ids
from pipeline.policy.loading import Policy, load_engine, load_policy
from pipeline.policy.models import ModelChoice
from pipeline.rollout.streaming import StreamingGrader
from pipeline.tasks import task_of
from pipeline.tasks.graders import start_graders
from pipeline.tasks.problem_sets import load_problem_sets

FLOOR_BATCHES = 3
MOST_VECTORS = 7  # of the training run, evenly spaced, that every way is measured at
BAR_FLOOR, BAR_SLOPE, SLOPE_FROM = 1.2, 0.05, 0.01
SCALES = (0.003, 0.01, 0.03)  # rms of v
DEFAULT = "merged, stochastic"


def measure(choice: ModelChoice, config: RunConfig, steps: int, gpu: bool) -> list[Row]:
    """Rows for `steps` training steps of the settings in `config`; the bars hold on a GPU."""
    from pipeline.rollout import Sampling

    task = task_of(config)
    sets = load_problem_sets(config)
    assert config.max_prompt_length and config.max_completion_length and config.prompts_per_step
    with start_graders(config) as pool:
        policy = load_policy(choice, config)
        problems, _ = fitting_problems(policy.tokenizer, sets.train, config.max_prompt_length, task)
        vectors, logged = _train(policy, StreamingGrader(pool, task), problems, config, steps)
    chosen = prompt_ids(policy.tokenizer, problems[: config.prompts_per_step], task)
    prompts = [ids for ids in chosen for _ in range(config.num_generations or 1)]
    bench = _Bench(policy, config, prompts, Sampling(config.max_completion_length))
    direction = bench.direction()
    fixed = [completion.token_ids for completion in bench.generate(0 * direction, seed=-1)]
    found: dict[str, dict[str, Any]] = {}
    for title, serve in bench.ways(choice).items():
        serve()
        floor = statistics.mean(bench.mismatch(0 * direction, 1000 + i) for i in range(FLOOR_BATCHES))
        every = max(1, -(-steps // MOST_VECTORS))
        mean = statistics.mean(bench.mismatch(v, step) for step, v in enumerate(vectors) if step % every == 0)
        slopes = {scale: bench.slopes(scale * direction, fixed) for scale in SCALES}
        found[title] = {"floor": floor, "mean": mean, "slopes": slopes}
    bench.policy.close()
    return _rows(found, logged, steps, gpu)


def _rows(found: dict[str, dict[str, Any]], logged: Sequence[float], steps: int, gpu: bool) -> list[Row]:
    rows = [row(f"logged in training, mean of {steps} steps", statistics.mean(logged), "k3 per token")]
    for title, result in found.items():
        bar = BAR_FLOOR if gpu and title == DEFAULT else None
        what = f"{title}: mismatch over {steps} steps against its floor at v = 0"
        rows.append(row(what, result["mean"], "k3 per token", baseline=result["floor"], at_most=bar))
    for title, result in found.items():
        for scale, (own, exact) in result["slopes"].items():
            barred = gpu and title == DEFAULT and scale >= SLOPE_FROM
            what = f"{title}: slope at rms(v) = {scale:g}"
            if barred:
                rows.append(Row(f"{what}, against the trainer", own, "Δ/Δ", bar=f"1 ± {BAR_SLOPE:g}",
                                ok=abs(own - 1) <= BAR_SLOPE))  # fmt: skip
            else:
                rows.append(row(f"{what}, against the trainer", own, "Δ/Δ"))
            rows.append(row(f"{what}, against the exact update", exact, "Δ/Δ"))
    return rows


def _train(
    policy: Policy, grader: StreamingGrader, problems: Any, config: RunConfig, steps: int
) -> tuple[list[Any], list[float]]:
    """The vector before each of `steps` training steps, and the mismatch that each step logged."""
    from pipeline.run_folder import RunFolder
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
        """What to call to serve in each way. The last one replaces the engine."""
        ways: dict[str, Callable[[], None]] = {
            DEFAULT: lambda: self._merge("stochastic"),
            "merged, nearest": lambda: self._merge("nearest"),
        }
        if self.config.quant == "nf4":
            ways["merged into the checkpoint's own weights, stochastic"] = lambda: self._merge_foreign(choice)
        ways["lowrank"] = lambda: self._beside(choice)
        return ways

    def _merge(self, rounding: Any, bases: Any = None) -> None:
        worker: Any = self.policy.engine.worker  # type: ignore[attr-defined]
        worker.tinylora_merger = self.bank.merger_into(worker.tinylora_weights, rounding, bases)
        self.rounding = rounding

    def _merge_foreign(self, choice: ModelChoice) -> None:
        plain = load_plain(choice.location)
        self._merge("stochastic", [plain.get_submodule(name).weight.detach() for name in self.bank.names])

    def _beside(self, choice: ModelChoice) -> None:
        self.policy.engine.close()
        config = replace(self.config, refresh="lowrank")
        self.policy = replace(self.policy, engine=load_engine(choice, config, self.policy.model, self.policy.tokenizer))
        self.rounding = None

    def generate(self, v: Any, seed: int) -> list[Any]:
        self.policy.engine.refresh(v)
        return self.policy.engine.generate(self.prompts, replace(self.sampling, seed=seed + 1), lambda *_: None)

    def trainer_log_probs(self, v: Any, completions: list[list[int]], rounding: Any) -> Any:
        """Log-probabilities of all completion tokens, one after another."""
        import torch

        from pipeline.training.logprobs import log_probs_without_gradient, unpadded_rows

        with torch.no_grad():
            self.bank.v.copy_(v)
        self.bank.merge_with(rounding)
        rows, prompts, lengths = unpadded_rows(self.prompts, completions, self.bank.v.device)
        width, budget = int(lengths.max()), self.config.micro_batch_tokens
        values, _ = log_probs_without_gradient(self.model, rows, prompts, lengths, width, 1.0, budget)
        return values[torch.arange(width, device=values.device) < lengths.unsqueeze(1)]

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

        from pipeline.training.logprobs import kl_k3

        completions = self.generate(v, seed)
        sampled = torch.tensor([p for completion in completions for p in completion.log_probs])
        trainer = self.trainer_log_probs(v, [completion.token_ids for completion in completions], self.rounding)
        difference = trainer - sampled.to(trainer.device)
        return kl_k3(difference, torch.ones_like(difference))

    def slopes(self, v: Any, completions: list[list[int]]) -> tuple[float, float]:
        """Of the engine's Δ log p on the trainer's in this way, and on that of the exact update."""
        engine = self.engine_log_probs(v, completions) - self.engine_log_probs(0 * v, completions)
        slopes = []
        for rounding in (self.rounding, None):
            trainer = self.trainer_log_probs(v, completions, rounding)
            trainer = trainer - self.trainer_log_probs(0 * v, completions, rounding)
            slopes.append(float((engine * trainer).sum() / trainer.square().sum()))
        return slopes[0], slopes[1]
