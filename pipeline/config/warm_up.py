"""The settings of a supervised warm-up (`scripts/sft.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config.settings import SEEDS, Hub, Quant, Settings, TaskName
from storage.errors import ConfigError
from storage.settings import STRICT, Declared, same, setting


@dataclass(frozen=True, config=STRICT)
class WarmUp(Declared):
    """Settings of a warm-up. None means: by the model and the machine. Lengths are in tokens."""

    output_dir: str = setting(..., "Where the model folder goes; must not exist.")
    model: str | None = same(Settings, "model")
    hub: Hub = same(Settings, "hub")
    task: TaskName = setting("gsm8k", "Form of prompts and answers.")
    template: str | None = same(Settings, "template")
    system_prompt: str | None = same(Settings, "system_prompt")
    dataset: str | None = same(Settings, "dataset")
    max_samples: int = setting(2000, "Use at most this many examples.", gt=0)
    method: Literal["lora", "full"] = setting("lora", "An adapter, or all weights.")
    quant: Quant | None = setting(None, "Frozen weights under an adapter. Default: nf4 on a GPU.")
    lora_rank: int = setting(16, "Rank of the adapter.", gt=0)
    steps: int = setting(100, "Optimizer steps.", gt=0)
    batch_size: int = setting(16, "Examples per step.", gt=0)
    lr: float | None = setting(None, "Learning rate. Default: 2e-4 for lora, 5e-5 for full.", gt=0)
    max_length: int = setting(1024, "Longer examples (in tokens) are dropped and counted.", gt=0)
    seed: int = setting(0, "Seeds examples, their order and the adapter.", ge=0, lt=SEEDS)

    def __post_init__(self) -> None:
        if self.method == "full" and self.quant == "nf4":
            raise ConfigError("--method full trains all weights, so they cannot be quantised; leave out --quant nf4")
        if Path(self.output_dir).exists():
            raise ConfigError(f"--output-dir {self.output_dir} exists already; choose another")

    @property
    def learning_rate(self) -> float:
        return self.lr if self.lr is not None else 2e-4 if self.method == "lora" else 5e-5
