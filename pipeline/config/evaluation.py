"""The settings of `scripts/eval.py` that are not those of a run."""

from __future__ import annotations

from typing import Any

from pydantic.dataclasses import dataclass

from pipeline.config.settings import SEEDS
from storage.errors import ConfigError
from storage.settings import STRICT, Declared, setting

FROM_A_RUN = (  # what may be told of `Settings`; else it is as the run was trained
    "model",
    "hub",
    "quant",
    "vllm",
    "task",
    "template",
    "system_prompt",
    "dataset",
    "difficulty",
    "eval_dataset",
    "eval_split",
    "max_prompt_length",
    "max_completion_length",
    "reward",
    "compile_credit",
    "grader_workers",
    "unsafe_grader",
    "header_store",
    "canary",
    "gpu_memory",
    "replicas",
    "ray_address",
    "grader_nodes",
    "engine_weights",
)


@dataclass(frozen=True, config=STRICT)
class EvalSettings(Declared):
    """What is measured, of whom, and how often it is sampled."""

    pass_at: str = setting("1", "Values of k, separated by commas.")
    num_samples: int | None = setting(None, "Completions per problem. Default: the largest k.", gt=0)
    checkpoint: str | None = setting(None, "A run's folder. Default: the newest run, if any.")
    baseline: bool = setting(False, "Evaluate the base model: alone, or against a checkpoint.")
    compare: bool = setting(False, "Compare two checkpoints or eval.json files, or one and --baseline.")
    greedy: bool = setting(False, "Temperature 0, one completion per problem.")
    temperature: float | None = setting(None, "Of the sampling. Default: the run's --eval-temperature.", ge=0)
    limit: int | None = setting(
        None, "At most this many held-out problems. Default: the run's.", gt=0, flag="--limit --eval-problems"
    )
    seed: int = setting(0, "Seeds the sampling.", ge=0, lt=SEEDS)
    power: float | None = setting(
        None, "Print how many problems show this gain of pass@1, and stop.", gt=0, lt=1, why=", a gain such as 0.05"
    )
    base_rate: float = setting(0.5, "For --power without an eval.json.", ge=0, le=1)
    out: str | None = setting(None, "Where to write. Default: eval.json in the checkpoint's folder.")

    def __post_init__(self) -> None:
        if self.greedy and self.temperature:
            raise ConfigError(f"--greedy and --temperature {self.temperature} exclude each other")
        if self.greedy or self.temperature is not None:
            self.check_samples(self.temperature or 0.0, "--greedy" if self.greedy else "--temperature 0")
        if self.samples < max(self.ks):
            raise ConfigError(f"--num-samples {self.samples} is less than the {max(self.ks)} that --pass-at needs")

    def check_samples(self, temperature: float, asked: str = "--eval-temperature 0 of the run") -> None:
        """Raise `ConfigError` for several completions of a problem at a temperature of 0, which `asked` names."""
        if temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"{asked}: {self.samples} completions of a problem would be one and the same; use --pass-at 1"
            )

    @property
    def ks(self) -> list[int]:
        """'1,4,8' → [1, 4, 8]. Raises `ConfigError` for anything else."""
        try:
            ks = sorted({int(part) for part in self.pass_at.split(",")})
        except ValueError:
            raise ConfigError(
                f"--pass-at must be numbers separated by commas, such as 1,4,8, not {self.pass_at!r}"
            ) from None
        if ks[0] < 1:
            raise ConfigError(f"--pass-at must be at least 1, not {ks[0]}")
        return ks

    @property
    def of_run(self) -> dict[str, Any]:
        """What of it replaces a run's settings."""
        temperature = 0.0 if self.greedy else self.temperature
        told = {"eval_temperature": temperature, "eval_problems": self.limit}
        return {name: value for name, value in told.items() if value is not None}

    @property
    def samples(self) -> int:
        """Completions per problem."""
        return max(self.ks) if self.num_samples is None else self.num_samples
