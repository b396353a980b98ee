"""From settings to a model and a configuration that can work here, before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import asdict, replace

from adapters.config import PROJECTIONS, Rule
from pipeline.config import ConfigError, RunConfig, Settings, resolved
from pipeline.environment import has_gpu, prepare_environment
from pipeline.policy.loading import parameter_table
from pipeline.policy.models import ModelChoice, architecture, check_length, choose_model
from pipeline.tasks import task_of, with_dataset
from pipeline.versions import warn_of_untested

REPORTER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def prepare(settings: Settings) -> tuple[ModelChoice, RunConfig]:
    """Everything that can be checked before anything heavy is imported."""
    check_processes()
    choice = choose_model(settings.model, settings.hub)
    settings = replace(settings, model=choice.name)
    config = resolved(with_dataset(settings, starter=choice.is_starter), starter=choice.is_starter, gpu=has_gpu())
    check_length(config.lengths, config.max_length, choice, architecture(choice))
    config = replace(config, projections=projections_of(settings.projections, config, choice))
    check_packages(config)
    task_of(config)
    warn_of_untested()
    return choice, config


def described(settings: Settings) -> str:
    """What a run would do and train, for people; no weights are loaded."""
    choice, config = prepare(settings)
    prepare_environment(choice.location)
    table = [*asdict(config).items(), ("", ""), *parameter_table(choice, config)]
    return f"model: {choice.name} ({choice.reason})\n\n" + "\n".join(f"{name:24}{value}" for name, value in table)


def projections_of(told: Rule | None, config: RunConfig, choice: ModelChoice) -> Rule:
    """The rule that gives P. Raises `ConfigError` for more principal ones than a group has mixing entries, and for more
    groups than modules."""
    layers = architecture(choice).get("num_hidden_layers")
    modules = layers * len(PROJECTIONS) if layers else None
    if modules and config.groups > modules:
        raise ConfigError(f"--groups {config.groups}: the model has {modules} modules; use at most that many")
    entries = modules // config.groups * config.rank**2 if modules else None  # of the smallest group
    fits = entries is None or config.u <= entries
    if told == "principal" and not fits:
        raise ConfigError(
            f"--projections principal: a group has {entries} mixing entries at --rank {config.rank}, fewer than --u "
            f"{config.u}; use at most {entries} scalars, a larger --rank, or --projections normal"
        )
    return told or ("normal" if choice.is_starter or not fits else "principal")


def check_packages(config: RunConfig) -> None:
    """Raise `ConfigError` for an engine or tracker that is asked for but not installed."""
    if config.vllm and importlib.util.find_spec("vllm") is None:
        raise ConfigError("--vllm: vLLM is not installed here; run `make setup`, or generate with --no-vllm")
    if config.replicas != "1" and importlib.util.find_spec("ray") is None:
        raise ConfigError(f"--replicas {config.replicas}: Ray is not installed here; run `make setup`")
    package = REPORTER_PACKAGES.get(config.report_to)
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(f"--report-to {config.report_to}: the package is not installed; run `pip install {package}`")


def check_processes() -> None:
    """Raise `ConfigError` where a launcher started several processes: each would train a policy of its own."""
    count = os.environ.get("WORLD_SIZE") or "1"
    if count != "1":
        raise ConfigError(
            f"WORLD_SIZE={count}: a process here works on one GPU; start it with python, without torchrun or "
            f"accelerate; train.py and eval.py use several with --replicas"
        )
