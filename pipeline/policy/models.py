"""Which model is trained, where it comes from, and how it is loaded: by Unsloth, frozen, with the adapter injected."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import adapters
from adapters.config import TinyLoRAConfig
from pipeline.config import DEFAULT_MODEL, STARTER, ConfigError, RunConfig
from pipeline.environment import has_gpu, prepare_environment
from pipeline.policy.gguf.architecture import check_architecture, model_config, refusal
from pipeline.policy.gguf.header import gguf_in, read_header
from pipeline.run_folder import read_json

STARTER_FOLDER = Path(__file__).resolve().parents[2] / "data" / "starter" / "model"


@dataclass(frozen=True)
class ModelChoice:
    """`location` is where the model is: a folder, a hub id or a GGUF file; after `made_ready` what the libraries load.
    `name` is what people call it."""

    name: str
    location: str
    reason: str

    @property
    def is_starter(self) -> bool:
        return self.name == STARTER

    @property
    def is_gguf(self) -> bool:
        return Path(self.location).is_file()


def choose_model(model: str | None, hub: str = "huggingface") -> ModelChoice:
    """Resolve the `--model` option without loading anything heavy.

    Raises `ConfigError` for a folder without a model, a checkpoint that is quantised already, a GGUF file that is
    damaged, an architecture that cannot be trained, or a missing hub library.
    """
    if model is None:
        gpu = has_gpu()
        reason = "the default on a machine with an NVIDIA GPU" if gpu else "the bundled model: no NVIDIA GPU was found"
        model = DEFAULT_MODEL if gpu else STARTER
    else:
        reason = "given with --model"
    if model == STARTER:
        choice = ModelChoice(STARTER, str(STARTER_FOLDER), reason)
    elif Path(model).is_dir():
        file = gguf_in(Path(model))
        if file is None:
            choice = ModelChoice(model, str(Path(model).resolve()), f"{reason}, a local folder")
        else:
            choice = ModelChoice(model, str(file.absolute()), f"{reason}, {file.name} in that folder")
    elif Path(model).is_file():  # a link is not followed: the tokenizer may be next to it
        choice = ModelChoice(model, str(Path(model).absolute()), f"{reason}, a GGUF file")
    elif model.lower().endswith(".gguf"):
        raise ConfigError(f"--model {model}: no such file; give the path of a .gguf file, or a folder with one")
    elif hub == "modelscope":
        choice = ModelChoice(model, _modelscope(model), f"{reason}, from ModelScope")
    elif model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ConfigError(f"--model {model}: no such folder, and not a hub id of the form owner/name")
    else:
        choice = ModelChoice(model, model, f"{reason}, from the Hugging Face hub")
    architecture(choice)
    return choice


def _modelscope(model: str) -> str:
    try:
        from modelscope import snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("--hub modelscope needs the package 'modelscope': pip install modelscope") from None
    return snapshot_download(model)


def architecture(choice: ModelChoice) -> dict[str, Any]:
    """Type and sizes from a local folder's config.json or a GGUF file, {} for a hub id. Raises `ConfigError` if it
    cannot be trained."""
    kept = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings")
    if choice.is_gguf:
        header = read_header(Path(choice.location))
        check_architecture(header)
        return {key: model_config(header)[key] for key in kept}
    folder = Path(choice.location)
    if not folder.is_dir():
        return {}
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"--model {choice.name}: the folder has neither a config.json, as models in transformers format do, nor a "
            f"GGUF file"
        )
    config = read_json(path)
    if "quantization_config" in config:
        raise ConfigError(
            f"--model {choice.name} is quantised on disk; give the unquantised model: --quant nf4 quantises on loading"
        )
    _check_head(choice, config)
    return {key: config.get(key) for key in kept}


def _check_head(choice: ModelChoice, config: Mapping[str, Any]) -> None:
    found = refusal(config, str(config.get("model_type")))
    if found is not None:
        raise ConfigError(f"--model {choice.name}: {found}")


def check_length(asked: str, length: int, choice: ModelChoice, settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where `asked` makes rows longer than the model's positions reach: Unsloth would stretch these
    without a word, and what is trained would be another model. settings: of its config.json."""
    longest = settings.get("max_position_embeddings")
    if longest and length > longest:
        raise ConfigError(
            f"{asked}: {length} tokens are more than the {longest} that {choice.name} reads; ask for fewer"
        )


def made_ready(choice: ModelChoice) -> ModelChoice:
    """Prepare the environment of the libraries, and turn a GGUF file into a folder that they load.

    To be called before the first of them is imported; a conversion takes half a minute for a billion weights, once.
    """
    prepare_environment(choice.location)
    if not choice.is_gguf:
        return choice
    from pipeline.policy.gguf.convert import converted

    return replace(choice, location=str(converted(Path(choice.location))))


def transformers_config(choice: ModelChoice) -> Any:
    """The model's `transformers` config, of a GGUF file from its header. Raises `ConfigError` for a model of the hub
    that cannot be trained, or cannot be had."""
    from transformers import AutoConfig

    if choice.is_gguf:
        return AutoConfig.for_model(**model_config(read_header(Path(choice.location))))
    try:
        config = AutoConfig.from_pretrained(choice.location)
    except (OSError, ValueError) as error:  # no network, no such model, one behind a form, one of another kind
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"--model {choice.name}: its description cannot be read ({reason})") from None
    _check_head(choice, config.to_dict())
    return config


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the banners and import advice of the libraries out of the way; what they printed is shown if they fail.

    Redirects the file descriptors: some of it is printed by C++.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    with tempfile.TemporaryFile() as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for descriptor, _ in kept:
            os.dup2(printed.fileno(), descriptor)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in kept:
                os.dup2(copy, descriptor)
                os.close(copy)
            if failed:
                printed.seek(0)
                sys.stderr.write(printed.read().decode(errors="replace"))


def import_libraries() -> None:
    """Import trl, then unsloth: in this order TRL keeps its own classes.

    Unsloth loads `vllm._C` as a test. Without a GPU that is vLLM's build for AVX512-BF16; on any other CPU vLLM then
    loads another build as well, which aborts the process. So that module is missing while Unsloth is imported.
    """
    hidden = not has_gpu() and "vllm._C" not in sys.modules
    with quiet_libraries():
        import transformers
        import trl  # noqa: F401
        import trl.trainer.grpo_trainer  # noqa: F401

        if hidden:
            sys.modules["vllm._C"] = None  # type: ignore[assignment]
        import unsloth  # noqa: F401

        if hidden:
            del sys.modules["vllm._C"]
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()


def compute_dtype(chosen: str = "auto") -> str:
    """Name of the torch dtype of activations and merged weights: `chosen`, or by default bfloat16 on a GPU and float32
    on a CPU."""
    return chosen if chosen != "auto" else "bfloat16" if has_gpu() else "float32"


def adapter_config(config: RunConfig) -> TinyLoRAConfig:
    """The adapter's part of a run's settings."""
    return TinyLoRAConfig(config.u, config.rank, config.groups, seed=config.seed, projections=config.projections)


def load_model(choice: ModelChoice, config: RunConfig) -> tuple[Any, Any]:
    """The policy and its tokenizer: loaded by Unsloth, frozen, every target projection replaced by a TinyLoRA
    module."""
    model, tokenizer = load_frozen(choice, config)
    adapters.inject(model, adapter_config(config))
    return model, tokenizer


def load_frozen(choice: ModelChoice, config: RunConfig) -> tuple[Any, Any]:
    """The base model, not adapted, and its tokenizer, loaded by Unsloth."""
    import_libraries()
    import torch
    from unsloth import FastLanguageModel

    transformers_config(choice)  # refuses a model of the hub before its weights are fetched
    with quiet_libraries():
        model, tokenizer = FastLanguageModel.from_pretrained(
            choice.location,
            dtype=getattr(torch, compute_dtype(config.dtype)),
            load_in_4bit=config.quant == "nf4",
            max_seq_length=config.max_length,
            use_exact_model_name=True,  # else hub names are remapped to pre-quantised mirrors
        )
    return model, tokenizer


def eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: those of the generation config and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    ids = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([tokenizer.eos_token_id, *ids]))
