"""`eval.py` from its settings to `eval.json`: one policy, or a checkpoint beside its base on the same prompts and
seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.config import AdapterError
from pipeline.config import ConfigError, RunConfig, load_config
from pipeline.environment import prepare_environment
from pipeline.models import ModelChoice, architecture
from pipeline.policy import load_policy, start_graders
from pipeline.problem_sets import held_out_problems
from pipeline.run_folder import RUNS, write_json
from pipeline.train import EVALUATION_SEED, prepare, versions


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


def checkpoint_settings(checkpoint: Path) -> RunConfig:
    """The configuration of the run that a checkpoint folder belongs to: its own, or its parent's."""
    for folder in (checkpoint, checkpoint.parent):
        if (folder / "config.yaml").is_file():
            return load_config(folder / "config.yaml")
    raise ConfigError(f"--checkpoint {checkpoint}: neither it nor its parent holds a run's config.yaml")


def check_base(checkpoint: Path, trained_on: RunConfig, choice: ModelChoice) -> None:
    """Refuse, before any weights are loaded, a checkpoint that was trained on another model."""
    from pipeline.models import choose_model

    if trained_on.model == choice.name:
        return
    trained = choose_model(trained_on.model, trained_on.hub)
    if architecture(trained) != architecture(choice) or not architecture(choice):
        raise AdapterError(
            f"checkpoint {checkpoint} was trained on {trained.name}, not on {choice.name}; leave out --model"
        )


def evaluate_policies(
    config: RunConfig, checkpoint: Path | None, baseline: bool, ks: Sequence[int], samples: int, out: Path
) -> dict[str, Any]:
    """Evaluate the checkpoint, the base, or both; returns and writes the content of `eval.json`.

    config: as for training, its model being the base. checkpoint: a run's folder or a `checkpoint-N` in it, or None.
    """
    from pipeline.evaluate import evaluate, fitting_problems
    from pipeline.grading import StreamingGrader
    from pipeline.progress import EvaluationBar
    from pipeline.rollout import Sampling

    choice, config = prepare(config)
    if checkpoint is not None:
        check_base(checkpoint, checkpoint_settings(checkpoint), choice)
    print(f"model: {choice.name} ({choice.reason})", flush=True)
    prepare_environment(choice.location)
    problems = held_out_problems(config)
    with start_graders(config) as pool:
        policy = load_policy(choice, config)
        assert config.max_prompt_length is not None and config.max_completion_length is not None
        problems, dropped = fitting_problems(policy.tokenizer, problems, config.max_prompt_length)
        sampling = Sampling(config.max_completion_length, config.temperature, EVALUATION_SEED + config.seed)
        grader = StreamingGrader(pool)
        results: dict[str, Any] = {}
        for name, wanted in (("baseline", baseline), ("checkpoint", checkpoint is not None)):
            if not wanted:
                continue
            if name == "checkpoint":
                from adapters import load_checkpoint

                load_checkpoint(checkpoint, policy.model)  # type: ignore[arg-type]
            policy.engine.refresh(policy.model.tinylora.v)
            bar = EvaluationBar(len(problems) * samples, name)
            result = evaluate(policy.engine, policy.tokenizer, grader, problems, samples, sampling, bar.graded)
            bar.close()
            results[name] = result.summary(ks, config.reward, config.compile_credit)
        policy.close()
    record = {
        "model": choice.name,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "dataset": config.dataset,
        "dropped_prompts": dropped,
        "temperature": config.temperature,
        "engine": policy.engine.name,
        **results,
        "versions": versions(),
    }
    write_json(out, record)
    return record


def lines(record: dict[str, Any]) -> list[str]:
    """The result for people: one line a policy and k."""
    text = []
    for name in ("baseline", "checkpoint"):
        for key, value in record.get(name, {}).items():
            if key.startswith("pass@"):
                k = key.removeprefix("pass@")
                interval = f"95 % interval [{value['low']:.3f}, {value['high']:.3f}]"
                counted = f"{value['n']} completions of {record[name]['problems']} problems"
                text.append(f"{name:12}{key:8}{value[f'pass_at_{k}']:.3f}  {interval}, {counted}")
        if name in record:
            text.append(
                f"{name:12}compile rate {record[name]['compile_rate']:.3f}, reward {record[name]['mean_reward']:.3f}"
            )
    return text


def settings_for(checkpoint: Path | None, options: dict[str, Any]) -> RunConfig:
    """The run's settings with the command's options on top; the defaults where there is no checkpoint."""
    if checkpoint is None:
        return RunConfig(**options)
    stored = checkpoint_settings(checkpoint)
    return replace(stored, **options)
