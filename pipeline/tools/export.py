"""`export.py`: a trained adapter as a folder that other libraries load, and the import of the predecessors' files.

Formats: `lora` (PEFT, vLLM), `peft-tinylora` (PEFT's own tuner), `merged` (a plain model), `tinylora` (this project's
own checkpoint, the way in for a `tiny_lora_v.pt`). A folder appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapters
from adapters.config import AdapterError
from pipeline.config import ConfigError, RunConfig, Settings, resolved
from pipeline.environment import has_gpu
from pipeline.evaluation.choose import check_base, checkpoint_settings, usable
from pipeline.launch import check_processes
from pipeline.policy.models import ModelChoice, choose_model, load_model, made_ready
from pipeline.run_folder import check_folder

TAGS = "tags:\n- tinylora\n---\n"  # in the README of every export
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
FORMATS = ("lora", "peft-tinylora", "merged", "tinylora")


def export(
    checkpoint: Path,
    form: str,
    out: Path,
    *,
    model: str | None = None,
    quant: str | None = None,
    rounding: str | None = None,
    variant: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `checkpoint` (a run's folder, a checkpoint in it, or a `tiny_lora_v.pt`) to the folder `out`.

    Raises `ConfigError` or `AdapterError` with one sentence for a checkpoint or folder that will not do.
    """
    check_processes()
    if rounding is not None and form in ("lora", "peft-tinylora"):
        raise ConfigError(f"--rounding {rounding}: --format {form} merges no weights; leave it out")
    check_out(out, checkpoint, overwrite)
    settings, apply = _source(checkpoint, model, quant, variant)
    choice = choose_model(settings.model, settings.hub)
    told: dict[str, Any] = {"model": choice.name, "rounding": rounding or settings.rounding}
    config = resolved(replace(usable(settings, vllm=False), **told), starter=choice.is_starter, gpu=has_gpu())
    if checkpoint.is_dir():
        check_base(checkpoint, checkpoint_settings(checkpoint), choice, config.quant)
    choice = made_ready(choice)
    adapted, tokenizer = load_model(choice, config)
    apply(adapted)
    place = out.resolve()  # a link stays one
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _write(form, adapted, tokenizer, choice, config, partial)
        if form == "tinylora":  # evaluated as the run was, which is not how it is loaded here
            of_run = replace(settings, model=choice.name) if checkpoint.is_dir() else config
            of_run.save(partial / "config.yaml")
        (partial / "README.md").write_text(model_card(form, choice, config, checkpoint), encoding="utf-8")
        if place.exists():
            shutil.rmtree(place)
        os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def check_out(out: Path, checkpoint: Path, overwrite: bool) -> None:
    """Raise `ConfigError` where no export can come, or one would take the place of more than an earlier export."""
    place = out.resolve()
    if checkpoint.resolve().is_relative_to(place):
        raise ConfigError(f"--out {out} is or holds the checkpoint {checkpoint}; choose another")
    if Path.cwd().is_relative_to(place):
        raise ConfigError(f"--out {out} is or holds the folder in which you are; choose another")
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if place.is_dir() and any(place.iterdir()):
        if not overwrite:
            raise ConfigError(f"--out {out} exists already; choose another, or add --overwrite")
        if not _is_export(place):
            raise ConfigError(f"--out {out} is no earlier export, which alone --overwrite replaces; choose another")
    check_folder(place.parent, f"--out {out}")


def _is_export(folder: Path) -> bool:
    """Whether a folder holds an export and nothing that was made in it later, such as a run."""
    card = folder / "README.md"
    told = card.is_file() and TAGS in card.read_text(encoding="utf-8", errors="replace")
    return told and not any(path.is_dir() for path in folder.iterdir())


def _source(
    checkpoint: Path, model: str | None, quant: str | None, variant: str | None
) -> tuple[Settings, Callable[[Any], Any]]:
    """The settings of a checkpoint, and what sets its adapter in a loaded model. Reads the file before any weights."""
    from adapters.legacy import apply_seed_checkpoint, read_seed_checkpoint

    changes: dict[str, Any] = {name: value for name, value in (("model", model), ("quant", quant)) if value is not None}
    if checkpoint.is_dir():
        if variant is not None:
            raise ConfigError("--variant is for imported tiny_lora_v.pt files; this checkpoint names its own")
        adapters.read_checkpoint(checkpoint)
        settings = replace(checkpoint_settings(checkpoint), **changes)
        return settings, lambda adapted: adapters.load_checkpoint(checkpoint, adapted)
    if checkpoint.suffix == ".safetensors":
        raise AdapterError(f"checkpoint {checkpoint}: give its folder, which also holds the run's settings")
    stored = read_seed_checkpoint(checkpoint)
    if not (model or stored.base_model):
        raise AdapterError(f"checkpoint {checkpoint} does not name the model it was trained on; give it with --model")
    adapter = stored.config(variant)
    told = {name: getattr(adapter, name) for name in ("u", "rank", "seed", "projections")}
    settings = Settings(**{"model": stored.base_model, **told, **changes})
    return settings, lambda adapted: apply_seed_checkpoint(stored, adapted, checkpoint)


def _write(form: str, adapted: Any, tokenizer: Any, choice: ModelChoice, config: RunConfig, folder: Path) -> None:
    from adapters.export import export_lora, export_peft_tinylora

    if form == "lora":
        export_lora(adapted, folder, choice.location)
    elif form == "peft-tinylora":
        export_peft_tinylora(adapted, folder, choice.location)
    elif form == "tinylora":
        adapters.save_checkpoint(folder, adapted, choice.name)
    elif form == "merged":
        save_merged(adapted, tokenizer, choice.location, config.rounding or "stochastic", folder)
    else:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, not {form!r}")


def save_merged(adapted: Any, tokenizer: Any, base: str, rounding: Any, folder: Path) -> None:
    """A plain transformers model with the adapter merged in, and its tokenizer, in the dtype the policy computes in."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    from adapters.export import merged_state

    state = merged_state(adapted, rounding)
    dtype = next(tensor.dtype for name, tensor in state.items() if name.endswith("_proj.weight"))
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=dtype)
    missing, unexpected = plain.load_state_dict(state, strict=False, assign=True)
    plain.tie_weights()
    lost = [name for name in missing if plain.get_parameter(name).is_meta]
    if lost or unexpected:
        raise RuntimeError(f"merged weights do not fit the architecture: missing {lost[:3]}, extra {unexpected[:3]}")
    plain.generation_config = GenerationConfig.from_model_config(plain.config)
    if getattr(adapted, "generation_config", None) is not None:
        plain.generation_config = adapted.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


USE = {
    "lora": "PEFT: `PeftModel.from_pretrained(base, folder)`. vLLM: `LLM(base, enable_lora=True, "
    "max_lora_rank={rank})` with `LoRARequest(name, 1, folder)`.",
    "peft-tinylora": "PEFT 0.21 or newer: `PeftModel.from_pretrained(base, folder)`; the base in 16 or 32 bits.",
    "merged": "transformers, vLLM or anything else that loads a model folder.",
    "tinylora": "this project's `scripts/eval.py`, `scripts/train.py` and `scripts/export.py`.",
}


def model_card(form: str, choice: ModelChoice, config: RunConfig, checkpoint: Path) -> str:
    """The folder's README: what it is, on which base it acts, what loads it."""
    base = "" if Path(choice.location).is_dir() else f"base_model: {choice.location}\n"
    rank = next((known for known in VLLM_RANKS if known >= config.rank), config.rank)
    served = " The adapter was trained on the base quantised to NF4." if config.quant == "nf4" else ""
    return (
        f"---\n{base}{TAGS}\n"
        f"{config.groups * config.u} numbers trained by reinforcement learning on {choice.name}, exported from "
        f"`{checkpoint.name}` as `{form}`.{served}\n\nLoads with {USE[form].format(rank=rank)}\n"
    )


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to the Hugging Face hub; returns its address. Raises `ConfigError` where that fails."""
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    constants.HF_HUB_OFFLINE = False  # set for loading a local model; an upload is what was asked for
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repository)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, httpx.RequestError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--push-to-hub {repository}: {reason}; it stays in {folder}; log in with `hf auth login` and try again"
        ) from None
    return f"https://huggingface.co/{repository}"
