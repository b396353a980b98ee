"""What a run is made with: settings in which nothing is open, kept as YAML in the run's folder."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic.dataclasses import dataclass

from adapters.config import Rule
from pipeline.config.settings import Quant, Settings
from storage.errors import ConfigError
from storage.settings import STRICT, declared

CISPO_LARGEST_WEIGHT = 5.0  # ScaleRL (arXiv 2510.13786)
DYNAMIC_LIMIT = 4.0
STARTER = "starter"
DEFAULT_MODEL = "Qwen/Qwen2.5-Coder-3B-Instruct"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RunConfig(Settings):
    """Settings with a value wherever a run needs one; made by `resolved`. Bounds are those of `Settings`."""

    model: str
    quant: Quant
    rank: int
    projections: Rule
    max_prompt_length: int
    num_generations: int
    prompts_per_step: int
    max_completion_length: int
    steps: int
    epsilon_high: float
    eval_problems: int

    def __post_init__(self) -> None:
        Settings(**asdict(self))
        if self.overlong_cache >= self.max_completion_length:
            raise ConfigError(
                f"--overlong-cache {self.overlong_cache} must be below --max-completion-length, "
                f"{self.max_completion_length}"
            )
        if self.dynamic_sampling and self.most_groups == self.prompts_per_step:
            raise ConfigError(
                f"--dynamic-limit {self.dynamic_limit}: of {self.prompts_per_step} groups a step none could be "
                f"replaced; use at least {math.ceil(100 * (1 + 1 / self.prompts_per_step)) / 100:.2f}"
            )
        if self.warmup_steps >= self.steps:
            raise ConfigError(f"--warmup-steps {self.warmup_steps} must be below --steps, {self.steps}")

    @property
    def batch_size(self) -> int:
        """Completions of one step."""
        return self.prompts_per_step * self.num_generations

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its completion."""
        return self.max_prompt_length + self.max_completion_length

    @property
    def lengths(self) -> str:
        """The options that `max_length` is the sum of, as errors name them."""
        return (
            f"--max-prompt-length {self.max_prompt_length} and --max-completion-length {self.max_completion_length}"
        )

    @property
    def most_groups(self) -> int:
        """Groups that dynamic sampling draws in a step at most."""
        return int(self.prompts_per_step * (self.dynamic_limit or DYNAMIC_LIMIT))


PRESETS: dict[str, dict[str, Any]] = {
    STARTER: {
        "rank": 2,
        "max_prompt_length": 384,
        "max_completion_length": 224,
        "prompts_per_step": 16,
        "num_generations": 16,
        "steps": 28,
        "eval_problems": 1024,
    },
    "model": {
        "rank": 8,
        "max_prompt_length": 2048,
        "max_completion_length": 1024,
        "prompts_per_step": 32,
        "num_generations": 8,
        "steps": 70,
        "eval_problems": 256,
    },
}
EARLIER: dict[str, Any] = {"projections": "normal", "scale_rewards": "group", "eval_split": "all"}


def resolved(settings: Settings, *, starter: bool, gpu: bool) -> RunConfig:
    """Fill what is open. The data set is the task's: see `with_dataset` there.

    Raises `ConfigError` for settings that do not go together once the open ones are known."""
    if settings.refresh == "lowrank" and not settings.vllm:
        raise ConfigError("--refresh lowrank: without --vllm there is no engine to refresh; add it, or leave it out")
    if settings.refresh == "lowrank" and settings.rounding is not None:
        raise ConfigError(f"--rounding {settings.rounding}: --refresh lowrank merges and rounds nothing; leave one out")
    quant = settings.quant or ("nf4" if gpu else "none")
    if settings.engine_weights == "nf4" and not (settings.vllm and quant == "nf4"):
        raise ConfigError("--engine-weights nf4: vLLM computes from the trainer's NF4 weights; add --vllm --quant nf4")
    if settings.dtype != "auto" and not gpu:
        raise ConfigError(
            f"--dtype {settings.dtype}: only a GPU computes in it; leave it out, and use a GPU for a run made with it"
        )
    if settings.kv_dtype == "fp8" and not (settings.vllm and gpu):
        raise ConfigError("--kv-dtype fp8: these are keys and values of vLLM on a GPU; leave it out")
    preset = PRESETS[STARTER if starter else "model"] | {
        "model": STARTER if starter else DEFAULT_MODEL,
        "quant": quant,
        "projections": "normal",
        "rounding": "stochastic" if settings.refresh == "merge" else None,
        "epsilon_high": CISPO_LARGEST_WEIGHT if settings.loss_type == "cispo" else settings.epsilon,
    }
    if settings.dynamic_sampling:
        preset["dynamic_limit"] = DYNAMIC_LIMIT
    if starter and gpu:
        preset["steps"] = 48  # of two seconds instead of 24
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    return RunConfig(**preset | given)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file, keys as in `Settings` (dashes allowed). Raises `ConfigError` naming file and key."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {path}: no such file")
    try:
        content = path.read_bytes()
        node, loaded = yaml.compose(content, Loader=yaml.SafeLoader), yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"config file {path}: must hold one setting a line, such as 'u: 32'")
    known = {setting.name: setting.type for setting in declared(Settings)}
    given = Counter(str(key.value).replace("-", "_") for key, _ in node.value)
    for key, count in given.items():
        if key not in known:
            raise ConfigError(f"config file {path}: unknown setting {key!r}")
        if count > 1:
            raise ConfigError(f"config file {path}: {key!r} is given {count} times; keep one of them")
    settings = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    return {key: _number(value) if known[key] is float else value for key, value in settings.items()}


def _number(value: Any) -> Any:
    """1e-3 as a number: to YAML it is text, as it has no point."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def load_config(path: str | Path) -> Settings:
    """The settings stored in a run's folder; what earlier runs did not store has the value that it had then."""
    return Settings(**EARLIER | read_settings(path))
