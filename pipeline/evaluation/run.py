"""`eval.py` from its settings to `eval.json`: one policy, or two on the same prompts and seeds, compared.

The model is loaded once for both where their adapters have the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import adapters
from pipeline.config import RunConfig, Settings, resolved
from pipeline.evaluation.choose import check_base, checkpoint_settings, on_gpu, usable
from pipeline.evaluation.compare import compare_counts, comparison_lines
from pipeline.evaluation.evaluate import EVALUATION_SEED, evaluate, evaluated_problems
from pipeline.launch import prepare
from pipeline.policy.loading import Policy, load_policy
from pipeline.policy.models import ModelChoice, adapter_config, compute_dtype, made_ready
from pipeline.progress import EvaluationBar
from pipeline.rollout import Sampling
from pipeline.rollout.streaming import StreamingGrader
from pipeline.run_folder import check_target
from pipeline.scale.engine import grade_where_drawn
from pipeline.scale.member import Launcher
from pipeline.scale.replica import Replica
from pipeline.scale.start import fleet_of, launching, lead, sharing_of
from pipeline.tasks import task_of
from pipeline.tasks.canary import Canary
from pipeline.tasks.graders import start_graders
from pipeline.tasks.problem_sets import clusters_of, held_out_problems
from pipeline.versions import provenance
from storage.files import write_json, write_json_lines

ADAPTER_SETTINGS = ("u", "rank", "groups", "seed", "projections", "refresh", "rounding", "dtype")


def evaluate_policies(
    settings: Settings,
    policies: Sequence[tuple[str, Path | None]],
    ks: Sequence[int],
    samples: int,
    out: Path,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate each policy on the same prompts with the same seed; returns and writes the content of `eval.json`.

    settings: as for training, its model being the base. policies: a name and a checkpoint's folder, None for the base;
    two of them are compared. Every completion goes to `<out>-<name>.jsonl`.
    """
    check_target(out)
    made_with = provenance()
    choice, config = prepare(settings)
    for _, checkpoint in policies:
        if checkpoint is not None:
            stored = checkpoint_settings(checkpoint)
            check_base(checkpoint, stored, choice, config.quant)
            resolved(usable(stored, config.vllm), starter=choice.is_starter, gpu=on_gpu())  # refused here, if at all
            adapters.read_checkpoint(checkpoint)  # a damaged file ends here, before anything is loaded
    print(f"model: {choice.name} ({choice.reason})", flush=True)
    problems = held_out_problems(config)  # first: a data set may come from the hub
    choice = made_ready(choice)
    sampling = Sampling(config.max_completion_length, config.eval_temperature, EVALUATION_SEED + seed)
    results: dict[str, Any] = {}
    counts: dict[str, list[tuple[int, int]]] = {}
    loaded: Loaded | None = None
    with launching(config, Replica) as launcher, start_graders(config, sharing_of(launcher)) as pool:
        grader = StreamingGrader(pool, task_of(config))
        canary = Canary(pool, grader.task, problems)  # graded while the model is loaded
        checked: dict[str, Any] | None = None
        dropped: int | None = None
        for name, checkpoint in policies:
            loaded = policy_of(checkpoint, choice, config, loaded, launcher)
            policy = loaded.policy
            grade_where_drawn(policy, grader)
            checked = checked or canary.check(config.canary)
            if dropped is None:  # the policies have one tokenizer
                given = policy.tokenizer, problems, config.max_prompt_length, grader.task
                problems, dropped = evaluated_problems(*given)
            bar = EvaluationBar(len(problems) * samples, name)
            result = evaluate(policy.engine, policy.tokenizer, grader, problems, samples, sampling, bar.graded)
            bar.close()
            write_json_lines(out.with_name(f"{out.stem}-{name}.jsonl"), result.rows(config))
            results[name] = result.summary(ks, config)
            results[name]["dropped_prompts"] = dropped
            counts[name] = result.counts()
        assert loaded is not None
        engine = loaded.policy.engine.name
        loaded.close()
    record: dict[str, Any] = {
        "model": choice.name,
        "policies": {name: str(checkpoint) if checkpoint else None for name, checkpoint in policies},
        "dataset": config.eval_dataset or config.dataset,
        "temperature": config.eval_temperature,
        "seed": seed,
        "engine": engine,
        "canary": checked,
        **results,
    }
    if len(policies) == 2:
        ids = [problem.id for problem in problems]
        (first, one), (second, two) = counts.items()
        labels = tuple("the base model" if c is None else str(c) for _, c in policies)
        a, b = dict(zip(ids, one, strict=True)), dict(zip(ids, two, strict=True))
        record["comparison"] = compare_counts(labels, a, b, ks, clusters_of(problems))  # type: ignore[arg-type]
    ids = [problem.id for problem in problems]
    record["per_problem"] = {"ids": ids, "counts": counts, "clusters": clusters_of(problems)}
    record["versions"] = made_with
    write_json(out, record)
    return record


@dataclass
class Loaded:
    """A policy in memory, the adapter's settings with which its modules were made, and its other replicas."""

    policy: Policy
    adapter: tuple[Any, ...]
    replicas: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        self.policy.close()
        self.replicas.close()


def policy_of(
    checkpoint: Path | None,
    choice: ModelChoice,
    config: RunConfig,
    loaded: Loaded | None,
    launcher: Launcher | None = None,
) -> Loaded:
    """The policy of a checkpoint, or the base, refreshed into the engine. The model is loaded again only for an adapter
    of another shape or dtype."""
    import torch

    settings = config if checkpoint is None else adapter_settings(config, checkpoint)
    adapter = adapter_config(settings).meaning(), settings.refresh, settings.rounding, compute_dtype(settings.dtype)
    if loaded is None or (checkpoint is not None and adapter != loaded.adapter):
        if loaded is not None:
            loaded.close()
        replicas = ExitStack()
        fleet = replicas.enter_context(fleet_of(launcher, settings))
        loaded = Loaded(load_policy(choice, settings), adapter, replicas)
        lead(loaded.policy, fleet, settings)
    policy = loaded.policy
    if checkpoint is None:
        torch.nn.init.zeros_(policy.model.tinylora.v)
    else:
        adapters.load_checkpoint(checkpoint, policy.model)
    policy.serve()
    return loaded


def adapter_settings(config: RunConfig, checkpoint: Path) -> RunConfig:
    """`config` with the adapter of the run that the checkpoint belongs to."""
    stored = usable(checkpoint_settings(checkpoint), config.vllm)
    values = {name: getattr(stored, name) for name in ADAPTER_SETTINGS}
    return replace(config, **{name: value for name, value in values.items() if value is not None})


def lines(record: dict[str, Any]) -> list[str]:
    """The result for people: a block a policy, then the comparison and its conclusion."""
    text = []
    for name in record["policies"]:
        result = record[name]
        for key, value in result.items():
            if key.startswith("pass@") and value is None:
                text.append(f"{name:12}{key:8}unknown: no problem has {key[5:]} graded completions")
            elif key.startswith("pass@"):
                interval = f"95 % interval [{value['low']:.3f}, {value['high']:.3f}]"
                counted = f"{value['n']} completions of {result['problems']} problems"
                text.append(f"{name:12}{key:8}{value['pass_at_' + key[5:]]:.3f}  {interval}, {counted}")
        text.append(
            f"{name:12}compile rate {result['compile_rate']:.3f}, tests passed {result['tests_passed']:.3f}, reward "
            f"{result['mean_reward']:.3f}, cut at the limit {result['truncated']:.3f}"
        )
        total = max(1, sum(result["verdicts"].values()))
        shares = sorted(result["verdicts"].items(), key=lambda item: -item[1])
        text.append(f"{name:12}" + ", ".join(f"{v.lower().replace('_', ' ')} {n / total:.1%}" for v, n in shares))
        for kind in ("by_source", "by_difficulty"):
            for label, value in result[kind].items():
                interval = f"[{value['low']:.3f}, {value['high']:.3f}], {value['problems']} problems"
                text.append(f"{name:12}{kind[3:]} {label:22}{value['pass_at_1']:.3f}  {interval}")
    return text + comparison_lines(record.get("comparison"))
