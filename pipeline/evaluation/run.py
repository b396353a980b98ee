"""`eval.py` from its settings to `eval.json`: one policy, or two on the same prompts and seeds, compared.

The model is loaded once for both where their adapters have the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters.config import AdapterError
from pipeline.config import ConfigError, RunConfig, load_config
from pipeline.evaluation.compare import compare_counts, power_lines, stored_counts
from pipeline.evaluation.evaluate import EVALUATION_SEED
from pipeline.launch import prepare
from pipeline.policy.loading import Policy, load_policy
from pipeline.policy.models import ModelChoice, architecture, made_ready
from pipeline.run_folder import RUNS, check_target
from pipeline.tasks import task_of
from pipeline.tasks.canary import Canary
from pipeline.tasks.graders import start_graders
from pipeline.tasks.problem_sets import clusters_of, held_out_problems
from pipeline.versions import describe_versions
from storage.files import write_json, write_json_lines

ADAPTER_SETTINGS = ("u", "rank", "groups", "seed", "projections", "refresh", "rounding")


def newest_run() -> Path | None:
    """The run under runs/ that was trained last, if any."""
    found = list(RUNS.glob("*/tinylora.safetensors"))
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def parse_ks(text: str) -> list[int]:
    """'1,4,8' → [1, 4, 8]. Raises `ConfigError` for anything else."""
    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"--pass-at must be numbers separated by commas, such as 1,4,8, not {text!r}") from None
    if ks[0] < 1:
        raise ConfigError(f"--pass-at must be at least 1, not {ks[0]}")
    return ks


def samples_for(ks: Sequence[int], wanted: int | None, greedy: bool) -> int:
    """Completions per problem. Raises `ConfigError` where they are too few for the largest k, or many but all alike."""
    samples = max(ks) if wanted is None else wanted
    if samples < max(ks):
        raise ConfigError(f"--num-samples {samples} is less than the {max(ks)} that --pass-at needs")
    if greedy and samples > 1:
        raise ConfigError(f"--greedy: {samples} completions of a problem would be one and the same; use --pass-at 1")
    return samples


def policies(checkpoints: Sequence[Path], baseline: bool, compare: bool) -> list[tuple[str, Path | None]]:
    """The policies to evaluate, with their names in `eval.json`. Raises `ConfigError` for too few or too many."""
    for path in checkpoints:
        if not path.is_dir():
            raise ConfigError(f"checkpoint {path}: no such folder; give a run's folder or a checkpoint-N in it")
    if len(checkpoints) == 2 and not baseline:
        return [("a", checkpoints[0]), ("b", checkpoints[1])]
    if len(checkpoints) > 1 or (compare and not (checkpoints and baseline)):
        raise ConfigError("--compare needs two checkpoints (or two eval.json files), or one and --baseline")
    chosen: list[tuple[str, Path | None]] = [("baseline", None)] if baseline else []
    return chosen + [("checkpoint", path) for path in checkpoints]


def power_report(gain: float, rate: float, checkpoints: Sequence[Path]) -> list[str]:
    """The lines of `--power`, from a stored evaluation where one is given."""
    counts = None
    for path in checkpoints:
        counts = list(stored_counts(path / "eval.json" if path.is_dir() else path)[1].values())
    return power_lines(gain, rate, counts)


def checkpoint_settings(checkpoint: Path) -> RunConfig:
    """The configuration of the run that a checkpoint folder belongs to: its own, or its parent's."""
    for folder in (checkpoint, checkpoint.parent):
        if (folder / "config.yaml").is_file():
            return load_config(folder / "config.yaml")
    raise ConfigError(f"--checkpoint {checkpoint}: neither it nor its parent holds a run's config.yaml")


def check_base(checkpoint: Path, trained_on: RunConfig, choice: ModelChoice) -> None:
    """Refuse, before any weights are loaded, a checkpoint that was trained on another model."""
    from pipeline.policy.models import choose_model

    if trained_on.model == choice.name:
        return
    trained = choose_model(trained_on.model, trained_on.hub)
    if architecture(trained) != architecture(choice) or not architecture(choice):
        raise AdapterError(
            f"checkpoint {checkpoint} was trained on {trained.name}, not on {choice.name}; leave out --model"
        )


def evaluate_policies(
    config: RunConfig,
    policies: Sequence[tuple[str, Path | None]],
    ks: Sequence[int],
    samples: int,
    out: Path,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate each policy on the same prompts with the same seed; returns and writes the content of `eval.json`.

    config: as for training, its model being the base. policies: a name and a checkpoint's folder, None for the base;
    two of them are compared. Every completion goes to `<out>-<name>.jsonl`.
    """
    from adapters import read_checkpoint
    from pipeline.evaluation.evaluate import evaluate, fitting_problems
    from pipeline.progress import EvaluationBar
    from pipeline.rollout import Sampling
    from pipeline.rollout.streaming import StreamingGrader

    check_target(out)
    choice, config = prepare(config)
    for _, checkpoint in policies:
        if checkpoint is not None:
            check_base(checkpoint, checkpoint_settings(checkpoint), choice)
            read_checkpoint(checkpoint)  # a damaged file ends here, before anything is loaded
    print(f"model: {choice.name} ({choice.reason})", flush=True)
    problems = held_out_problems(config)  # first: a data set may come from the hub
    choice = made_ready(choice)
    assert config.max_prompt_length is not None and config.max_completion_length is not None
    sampling = Sampling(config.max_completion_length, config.eval_temperature, EVALUATION_SEED + seed)
    results: dict[str, Any] = {}
    counts: dict[str, list[tuple[int, int]]] = {}
    loaded: Loaded | None = None
    with start_graders(config) as pool:
        grader = StreamingGrader(pool, task_of(config))
        canary = Canary(pool, grader.task, problems)  # graded while the model is loaded
        checked: dict[str, Any] | None = None
        for name, checkpoint in policies:
            loaded = policy_of(checkpoint, choice, config, loaded)
            policy = loaded.policy
            checked = checked or canary.check(config.canary)
            problems, dropped = fitting_problems(policy.tokenizer, problems, config.max_prompt_length, grader.task)
            bar = EvaluationBar(len(problems) * samples, name)
            result = evaluate(policy.engine, policy.tokenizer, grader, problems, samples, sampling, bar.graded)
            bar.close()
            results[name] = result.summary(ks, config)
            results[name]["dropped_prompts"] = dropped
            counts[name] = result.counts()
            write_json_lines(out.with_name(f"{out.stem}-{name}.jsonl"), result.rows(config))
        assert loaded is not None
        engine = loaded.policy.engine.name
        loaded.policy.close()
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
    record["versions"] = describe_versions()
    write_json(out, record)
    return record


@dataclass
class Loaded:
    """A policy in memory and the adapter's settings with which its modules were made."""

    policy: Policy
    adapter: tuple[Any, ...]


def policy_of(checkpoint: Path | None, choice: ModelChoice, config: RunConfig, loaded: Loaded | None) -> Loaded:
    """The policy of a checkpoint, or the base, refreshed into the engine. The model is loaded again only for an adapter
    of another shape."""
    import torch

    from adapters import load_checkpoint

    settings = config if checkpoint is None else adapter_settings(config, checkpoint)
    adapter = tuple(getattr(settings, name) for name in ADAPTER_SETTINGS)
    if loaded is None or (checkpoint is not None and adapter != loaded.adapter):
        if loaded is not None:
            loaded.policy.close()
        loaded = Loaded(load_policy(choice, settings), adapter)
    policy = loaded.policy
    if checkpoint is None:
        torch.nn.init.zeros_(policy.model.tinylora.v)
    else:
        load_checkpoint(checkpoint, policy.model)
    policy.serve()
    return loaded


def adapter_settings(config: RunConfig, checkpoint: Path) -> RunConfig:
    """`config` with the adapter of the run that the checkpoint belongs to."""
    stored = checkpoint_settings(checkpoint)
    values = {name: getattr(stored, name) for name in ADAPTER_SETTINGS}
    return replace(config, **{name: value for name, value in values.items() if value is not None})


def compare_files(a: Path, b: Path, ks: Sequence[int]) -> dict[str, Any]:
    """Compare two stored evaluations. Raises `ConfigError` where they were not sampled alike."""
    (name_a, counts_a, record_a), (name_b, counts_b, record_b) = stored_counts(a), stored_counts(b)
    for setting in ("dataset", "temperature"):
        if record_a.get(setting) != record_b.get(setting):
            raise ConfigError(
                f"--compare: {a} has {setting} {record_a.get(setting)}, {b} has {record_b.get(setting)}; "
                f"evaluate both alike"
            )
    clusters = [record["per_problem"].get("clusters") or {} for record in (record_a, record_b)]
    return compare_counts((name_a, name_b), counts_a, counts_b, ks, clusters[0] | clusters[1])


def lines(record: dict[str, Any]) -> list[str]:
    """The result for people: a block a policy, then the comparison and its conclusion."""
    text = []
    for name in record["policies"]:
        result = record[name]
        for key, value in result.items():
            if key.startswith("pass@"):
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


def comparison_lines(comparison: dict[str, Any] | None) -> list[str]:
    """The difference for every k, then the conclusion."""
    if comparison is None:
        return []
    text = []
    for key, c in comparison.items():
        if key.startswith("pass@"):
            text.append(
                f"{'difference':12}{key:8}{c['difference']:+.3f}  95 % interval [{c['low']:+.3f}, {c['high']:+.3f}], "
                f"p = {c['p_value']:.2g} ({c['method']}); better on {c['only_b']} problems, worse on {c['only_a']}"
            )
    return [*text, comparison["conclusion"]]


def settings_for(checkpoint: Path | None, options: dict[str, Any]) -> RunConfig:
    """The run's settings with the command's options on top; the defaults where there is no checkpoint."""
    if checkpoint is None:
        return RunConfig(**options)
    stored = checkpoint_settings(checkpoint)
    return replace(stored, **options)
