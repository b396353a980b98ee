"""The configuration of a run: one frozen dataclass, validated when it is built, kept as YAML in the run's folder.

A field that is None depends on the model: `resolved` fills it from the preset of the bundled starter or of a real
model.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from data.difficulty import WindowError, parse_windows

TASK_NAMES = tuple(  # read, not imported: the options need no more
    path.stem
    for path in sorted(Path(__file__).with_name("tasks").glob("*.py"))
    if "\nTASK = " in path.read_text(encoding="utf-8")
)
LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo")
REPORTERS = ("none", "tensorboard", "wandb", "trackio")
CHOICES: dict[str, tuple[str, ...]] = {
    "hub": ("huggingface", "modelscope"),
    "quant": ("nf4", "none"),
    "loss_type": LOSS_TYPES,
    "scale_rewards": ("group", "batch", "none"),
    "report_to": REPORTERS,
    "refresh": ("merge", "lowrank"),
    "rounding": ("stochastic", "nearest"),
    "eval_split": ("test", "tuning", "all"),  # all: undivided, as runs had it before purposes were told apart
    "lr_schedule": ("constant", "linear", "cosine"),
    "importance_sampling_level": ("token", "sequence"),
    "task": TASK_NAMES,
    "reward": ("tiered", "pass-rate", "binary", "perfect-bonus", "compile-or-all"),
}
POSITIVE: tuple[str, ...] = ("u", "rank", "groups", "max_samples", "steps", "prompts_per_step", "num_iterations")
POSITIVE += ("step_kl",)
POSITIVE += ("max_completion_length", "max_prompt_length", "temperature", "eval_problems", "micro_batch_tokens")
POSITIVE += ("grader_workers", "gpu_memory", "top_p")
NOT_NEGATIVE: tuple[str, ...] = ("epsilon", "epsilon_high", "beta", "eval_every", "compile_credit", "eval_temperature")
NOT_NEGATIVE += ("stop_kl", "stop_entropy", "stop_idle", "header_store")
NOT_NEGATIVE += ("top_k", "overlong_cache", "warmup_steps", "max_grad_norm", "entropy_bonus")
NOT_NEGATIVE += ("adam_beta1", "adam_beta2")

CISPO_LARGEST_WEIGHT = 5.0  # ScaleRL (arXiv 2510.13786)
DYNAMIC_LIMIT = 4.0
STARTER = "starter"
DEFAULT_MODEL = "Qwen/Qwen2.5-Coder-3B-Instruct"


class ConfigError(ValueError):
    """A setting that cannot work; the message names it and says what to use."""


@dataclass(frozen=True)
class RunConfig:
    """Every setting of a training run. Lengths are in tokens, `gpu_memory` in GB."""

    # the policy
    model: str | None = None  # folder, GGUF file, hub id or "starter"
    hub: str = "huggingface"
    quant: str | None = None
    u: int = 32
    rank: int = 2
    groups: int = 1
    projections: str | None = None  # the rule that gives P; others are those of imported checkpoints
    # the task and its problems
    task: str = "code"
    template: str | None = None  # a name in the files of pipeline/tasks or a text file
    system_prompt: str | None = None
    dataset: str | None = None  # files, SOURCE:location, "starter" or "generated"; several are separated by commas
    dataset_weights: str | None = None  # how often each of them is drawn from, separated by commas
    eval_dataset: str | None = None
    difficulty: str | None = None  # windows, see data/difficulty.py
    max_samples: int | None = None
    shuffle_seed: int | None = None
    max_prompt_length: int | None = None
    # rollouts
    vllm: bool = False
    num_generations: int | None = None
    prompts_per_step: int | None = None
    temperature: float = 1.0
    top_k: int = 0  # see pipeline/rollout/sampling_support.py; 0 is all tokens
    top_p: float = 1.0
    dynamic_sampling: bool = False  # replace groups without a signal, see pipeline/training/dynamic_sampling.py
    dynamic_limit: float | None = None  # groups drawn in a step at most, in batches
    max_completion_length: int | None = None
    refresh: str = "merge"  # how ΔW reaches the engine: merged into its weights, or beside them
    rounding: str | None = None  # of merged weights
    gpu_memory: float | None = None
    # rewards
    reward: str = "tiered"
    compile_credit: float = 0.5
    overlong_cache: int = 0  # tokens below the limit within which a completion loses up to 1; 0 is no penalty
    mask_truncated: bool = False  # no gradient from completions that were cut
    advantage_scale: str | None = None  # "codeforces=0.5,codeforces/B=1.1"
    grader_workers: int | None = None
    unsafe_grader: bool = False
    header_store: int = 1024  # megabytes of precompiled headers
    canary: bool = True  # end a run whose graders refuse known-right solutions
    # GRPO
    steps: int | None = None
    lr: str = "auto"  # or a number: Adam's learning rate
    step_kl: float = 0.02  # nats a completion, of every step of --lr auto
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0  # 0 clips nothing
    num_iterations: int = 1
    epsilon: float = 0.2
    epsilon_high: float | None = None  # of cispo: the largest weight of a token
    loss_type: str = "dapo"
    importance_sampling_level: str = "token"  # sequence: GSPO
    entropy_bonus: float = 0.0
    scale_rewards: str | None = None  # whose standard deviation the advantages are divided by
    beta: float = 0.0
    micro_batch_tokens: int = 16384
    # the run
    seed: int = 0
    eval_every: int = 0
    eval_problems: int | None = None
    eval_split: str = "test"  # what a run is judged by before and after: see data/purposes.py
    eval_temperature: float = 1.0  # held-out sampling; 0 is greedy
    stop_kl: float = 1.0  # nats per token from the base, above which a run has collapsed; 0 never stops
    stop_entropy: float = 0.002  # nats per token, below which a run has collapsed; 0 never stops
    stop_idle: int = 20  # steps in a row without any row to train on, after which a run ends; 0 never stops
    output_dir: str | None = None
    report_to: str = "none"

    def __post_init__(self) -> None:
        if isinstance(self.lr, int | float) and not isinstance(self.lr, bool):
            object.__setattr__(self, "lr", f"{self.lr:g}")
        for name, kind in typing.get_type_hints(type(self)).items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), kind))
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"--{name.replace('_', '-')} must be greater than 0, not {value}")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ConfigError(f"--{name.replace('_', '-')} must be one of {', '.join(choices)}, not {value!r}")
        if self.num_generations is not None and self.num_generations < 2:
            raise ConfigError(
                f"--num-generations must be at least 2 to compare completions, not {self.num_generations}"
            )
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"--{name.replace('_', '-')} must not be negative, not {value}")
        self._check_combinations()
        if self.learning_rate is not None and not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ConfigError(f"--lr must be auto or a number greater than 0, not {self.lr}")
        scales, weights = parse_scales(self.advantage_scale), self.weights
        if any(not (value >= 0 and math.isfinite(value)) for value in scales.values()):
            raise ConfigError(f"--advantage-scale must hold numbers from 0 on, not {self.advantage_scale!r}")
        if weights is not None and len(weights) != len(self.datasets):
            raise ConfigError(f"--dataset-weights has {len(weights)} numbers for {len(self.datasets)} data sets")
        if weights is not None and not all(weight > 0 and math.isfinite(weight) for weight in weights):
            raise ConfigError(f"--dataset-weights must be greater than 0, not {self.dataset_weights!r}")
        if self.difficulty:
            try:
                parse_windows(self.difficulty)
            except WindowError as error:
                raise ConfigError(f"--difficulty: {error}") from None
        if self.compile_credit >= 1:
            raise ConfigError(f"--compile-credit must be below 1, the reward of a solution, not {self.compile_credit}")

    def _check_combinations(self) -> None:
        """Raise `ConfigError` where sampling, loss and optimizer cannot work as told."""
        if self.top_k == 1:
            raise ConfigError("--top-k 1 makes all completions of a group alike: use 2 or more, or 0 for all tokens")
        if self.top_p > 1:
            raise ConfigError(f"--top-p must be at most 1, which is all tokens, not {self.top_p:g}")
        for name in ("adam_beta1", "adam_beta2"):
            if getattr(self, name) >= 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be below 1, not {getattr(self, name):g}")
        if self.importance_sampling_level == "sequence" and self.loss_type != "grpo":
            raise ConfigError(
                f"--importance-sampling-level sequence weighs every completion alike, --loss-type {self.loss_type} by "
                f"its length: add --loss-type grpo"
            )
        if self.dynamic_limit is not None and not self.dynamic_sampling:
            raise ConfigError("--dynamic-limit bounds --dynamic-sampling: add it, or leave the limit out")
        if self.dynamic_limit is not None and not (self.dynamic_limit > 1 and math.isfinite(self.dynamic_limit)):
            raise ConfigError(f"--dynamic-limit must be greater than 1, the batch itself, not {self.dynamic_limit:g}")

    @property
    def datasets(self) -> list[str]:
        """The data sets that `dataset` names."""
        return [part.strip() for part in (self.dataset or "").split(",") if part.strip()]

    @property
    def learning_rate(self) -> float | None:
        """`lr` as a number, None for auto."""
        if self.lr == "auto":
            return None
        try:
            return float(self.lr)
        except ValueError:
            raise ConfigError(f"--lr must be auto or a number greater than 0, not {self.lr!r}") from None

    @property
    def weights(self) -> list[float] | None:
        """`dataset_weights` as numbers."""
        if self.dataset_weights is None:
            return None
        try:
            return [float(part) for part in self.dataset_weights.split(",")]
        except ValueError:
            raise ConfigError(
                f"--dataset-weights must be numbers separated by commas, such as 2,1, not {self.dataset_weights!r}"
            ) from None

    @property
    def batch_size(self) -> int:
        """Completions of one step."""
        assert self.prompts_per_step is not None and self.num_generations is not None
        return self.prompts_per_step * self.num_generations

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its completion."""
        assert self.max_prompt_length is not None and self.max_completion_length is not None
        return self.max_prompt_length + self.max_completion_length

    def save(self, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(yaml.safe_dump(asdict(self), sort_keys=False))
        temporary.replace(path)


PRESETS: dict[str, dict[str, Any]] = {
    STARTER: {
        "max_prompt_length": 384,
        "max_completion_length": 224,
        "prompts_per_step": 16,
        "num_generations": 16,
        "steps": 28,
        "eval_problems": 1024,
    },
    "model": {
        "max_prompt_length": 2048,
        "max_completion_length": 1024,
        "prompts_per_step": 32,
        "num_generations": 8,
        "steps": 200,
        "eval_problems": 256,
    },
}


def resolved(config: RunConfig, *, starter: bool, gpu: bool) -> RunConfig:
    """Fill every field that is None and has a default. That of the data set is the task's: see `with_dataset` there."""
    if config.refresh == "lowrank" and not config.vllm:
        raise ConfigError("--refresh lowrank: without --vllm there is no engine to refresh; add it, or leave it out")
    if config.refresh == "lowrank" and config.rounding is not None:
        raise ConfigError(f"--rounding {config.rounding}: --refresh lowrank merges and rounds nothing; leave one out")
    preset = PRESETS[STARTER if starter else "model"] | {
        "quant": "nf4" if gpu else "none",
        "rounding": "stochastic" if config.refresh == "merge" else None,
        "scale_rewards": "none" if config.loss_type == "dr_grpo" else "group",
        "epsilon_high": CISPO_LARGEST_WEIGHT if config.loss_type == "cispo" else config.epsilon,
    }
    if config.dynamic_sampling:
        preset["dynamic_limit"] = DYNAMIC_LIMIT
    if starter and gpu:
        preset["steps"] = 48  # of two seconds instead of 24
    config = replace(config, **{name: value for name, value in preset.items() if getattr(config, name) is None})
    assert config.max_completion_length is not None and config.steps is not None
    if config.overlong_cache >= config.max_completion_length:
        raise ConfigError(
            f"--overlong-cache {config.overlong_cache} must be below --max-completion-length, "
            f"{config.max_completion_length}"
        )
    if config.warmup_steps >= config.steps:
        raise ConfigError(f"--warmup-steps {config.warmup_steps} must be below --steps, {config.steps}")
    return config


EARLIER: dict[str, Any] = {"projections": "normal", "scale_rewards": "group", "eval_split": "all"}


def parse_scales(text: str | None) -> dict[str, float]:
    """'codeforces=0.5,codeforces/B=1.1' → factors by source, or by source and difficulty. Raises `ConfigError`."""
    scales = {}
    for part in (text or "").split(","):
        name, equals, value = part.strip().rpartition("=")
        try:
            if part.strip():
                scales[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if part.strip() and not (equals and name.strip()):
            raise ConfigError(f"--advantage-scale: {part.strip()!r} is not of the form SOURCE=NUMBER")
    return scales


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type; a YAML 1 may stand for a float, nothing else is converted."""
    optional = isinstance(kind, types.UnionType)
    wanted = next(k for k in typing.get_args(kind) if k is not types.NoneType) if optional else kind
    if value is None and optional:
        return None
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{name} must be of type {wanted.__name__}, not {value!r}")
    return value


def read_settings(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file, keys as in `RunConfig` (dashes allowed). Raises `ConfigError` naming file and key."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {path}: no such file")
    try:
        loaded = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"config file {path}: must hold one setting a line, such as 'u: 32'")
    known = {f.name for f in fields(RunConfig)}
    settings = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    for key in settings:
        if key not in known:
            raise ConfigError(f"config file {path}: unknown setting {key!r}")
    return settings


def load_config(path: str | Path) -> RunConfig:
    """The configuration stored in a run's folder; what earlier runs did not store has the value that it had then."""
    return RunConfig(**EARLIER | read_settings(path))
