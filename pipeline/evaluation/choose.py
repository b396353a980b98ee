"""Which policies are evaluated, and with which settings: decided before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.config import AdapterError
from pipeline.config import ConfigError, Settings, load_config
from pipeline.config.settings import Quant
from pipeline.policy.models import ModelChoice, architecture, choose_model, compute_dtype
from pipeline.run_folder import RUNS


def newest_run() -> Path | None:
    """The run under runs/ that was trained last, if any."""
    found = list(RUNS.glob("*/tinylora.safetensors"))
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


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


def settings_for(checkpoint: Path | None, options: dict[str, Any]) -> Settings:
    """The run's settings with the command's options on top; the defaults where there is no checkpoint."""
    if checkpoint is None:
        return Settings(**options)
    stored = checkpoint_settings(checkpoint)
    return replace(usable(stored, options.get("vllm", stored.vllm)), **options)


def usable(stored: Settings, vllm: bool) -> Settings:
    """The settings of a run, those of what is not used here left open: of vLLM, or of a GPU where there is none. What
    cannot be left open, such as float16, is refused later."""
    left_open: dict[str, Any] = {}
    if not vllm:
        left_open = {"refresh": "merge", "engine_weights": "auto"}
    if not (vllm and on_gpu()):
        left_open["kv_dtype"] = "auto"
    if stored.dtype == "bfloat16" and not on_gpu():
        left_open["dtype"] = "auto"
    return replace(stored, **left_open)


def on_gpu() -> bool:
    """Whether policies are evaluated on a GPU: elsewhere all is computed in float32."""
    return compute_dtype() != "float32"


def checkpoint_settings(checkpoint: Path) -> Settings:
    """The settings of the run that a checkpoint folder belongs to: its own, or its parent's."""
    for folder in (checkpoint, checkpoint.parent):
        if (folder / "config.yaml").is_file():
            return load_config(folder / "config.yaml")
    raise ConfigError(f"--checkpoint {checkpoint}: neither it nor its parent holds a run's config.yaml")


def check_base(checkpoint: Path, trained_on: Settings, choice: ModelChoice, quant: Quant) -> None:
    """Refuse, before any weights are loaded, a checkpoint that was trained on another model, or on other weights of it
    than those of `quant`."""
    if trained_on.quant not in (None, quant):
        raise AdapterError(
            f"checkpoint {checkpoint} was trained with --quant {trained_on.quant}, not {quant}; its scalars mean "
            f"something on those weights alone"
        )
    if trained_on.model == choice.name:
        return
    trained = choose_model(trained_on.model, trained_on.hub)
    if architecture(trained) != architecture(choice) or not architecture(choice):
        raise AdapterError(
            f"checkpoint {checkpoint} was trained on {trained.name}, not on {choice.name}; leave out --model"
        )
