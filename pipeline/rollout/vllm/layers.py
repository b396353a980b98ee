"""vLLM's layers on the trainer's frozen weights, which lie in the same process: nothing is read from disk twice, and
what can be shared is held once.

- Embedding and head are the trainer's own tensors, where vLLM does not pad the vocabulary.
- Norms, biases and, with weights of its own, the adapted layers are filled from the trainer's, 4-bit ones dequantised.
- Without weights of its own (`--engine-weights nf4`) the engine computes from the trainer's packed codes (`packed.py`).

All of this must be there when vLLM builds its layers and captures its graphs, so it goes in by vLLM's own ways to add a
kind of linear layer and a kind of checkpoint: a registered quantisation method and a registered loader.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.model_loader import BaseModelLoader, register_model_loader

from adapters.base import dense, float32_product
from pipeline.rollout.engine import EngineError
from pipeline.rollout.vllm.fused import fused_place
from pipeline.rollout.vllm.lowrank import add_buffers, add_lowrank
from pipeline.rollout.vllm.packed import PackedWeights
from pipeline.rollout.vllm.stream import product_into_stream

METHOD = "tinylora"  # for vLLM's options `quantization` and `load_format`
INTO_STREAM = (".o_proj", ".down_proj")  # whose outputs the residual stream takes in


class Source:
    """What an engine is built from. model: the trainer's, adapted. packed: the engine computes from packed codes and
    has no weights of its own; beside: its layers have room for ΔW beside them."""

    def __init__(self, model: Any, packed: PackedWeights | None, beside: bool) -> None:
        self.bank, self.packed, self.beside = model.tinylora, packed, beside
        adapted = {f"{name}.weight" for name in self.bank.names}
        self.fused = {fused_place(name)[0] for name in self.bank.names}
        names = {name.replace(".base_layer.", "."): p.detach() for name, p in model.named_parameters()}
        self.others = {name: p for name, p in names.items() if name not in adapted and not name.startswith("tinylora.")}
        self.embeddings = {
            "model.embed_tokens": model.get_input_embeddings().weight.detach(),
            "lm_head": model.get_output_embeddings().weight.detach(),
        }

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that the engine holds, by the names of the checkpoint; dense ones of the adapted layers are made
        one at a time."""
        if self.packed is None:
            for name, base in zip(self.bank.names, self.bank.bases(), strict=True):
                yield f"{name}.weight", dense(base)
        yield from self.others.items()


_sources: list[Source] = []  # of the engine that is being built: vLLM makes layers and loader itself


@contextmanager
def building_from(source: Source) -> Iterator[None]:
    """Engines built within this context, with `METHOD`, are built from `source`."""
    _sources.append(source)
    try:
        yield
    finally:
        _sources.pop()


class Linear(UnquantizedLinearMethod):
    """An adapted layer. name: vLLM's, of the fused layer."""

    def __init__(self, source: Source, name: str) -> None:
        super().__init__()
        self.packed, self.name = source.packed, name
        self.rank = source.bank.config.rank if source.beside else 0
        self.wide = torch.cuda.is_available() and name.endswith(INTO_STREAM)  # as the trainer's: `residual.py`
        into_stream = float32_product if self.rank else product_into_stream  # ΔW beside is added to one sum
        self.product = into_stream if self.wide else F.linear

    def create_weights(
        self, layer: Any, input_size_per_partition: int, output_partition_sizes: list[int], *args: Any, **options: Any
    ) -> None:
        if self.packed is None:
            super().create_weights(layer, input_size_per_partition, output_partition_sizes, *args, **options)
        else:
            self.packed.check(self.name, (sum(output_partition_sizes), input_size_per_partition))
            layer.register_parameter("weight", nn.Parameter(torch.empty(0), requires_grad=False))
        if self.rank:
            add_buffers(layer, output_partition_sizes, input_size_per_partition, self.rank)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        if self.packed is None:
            super().process_weights_after_loading(layer)
        else:
            self.packed.compile(self.name, getattr(layer, "bias", None), self.wide)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.packed is not None and self.packed.are_few(x):
            return self.packed.with_update(self.name, x, bias, self.wide)
        if self.packed is None and not self.wide:
            y = super().apply(layer, x, bias)
        else:
            weight = layer.weight if self.packed is None else self.packed.matrix(self.name)
            y = self.product(x, weight, bias)
        if not self.rank:
            return y
        return add_lowrank(
            y, x, layer.tinylora_right, layer.tinylora_mixing, layer.tinylora_left, layer.tinylora_sizes
        )


class Embedding(UnquantizedEmbeddingMethod):
    """Embedding or head, on the trainer's `weight` where shape and type are the same."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def create_weights(self, layer: Any, width: int, sizes: list[int], *args: Any, **options: Any) -> None:
        dtype = options.get("params_dtype")
        if self.weight.shape == (sum(sizes), width) and self.weight.dtype == dtype and self.weight.is_contiguous():
            layer.register_parameter("weight", nn.Parameter(self.weight, requires_grad=False))
            layer.weight.weight_loader = lambda *_: None  # it holds what would be loaded
        else:
            super().create_weights(layer, width, sizes, *args, **options)


@register_quantization_config(METHOD)
class Config(QuantizationConfig):
    def get_name(self) -> str:  # type: ignore[override]
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Config:
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        source = _sources[-1]
        if isinstance(layer, VocabParallelEmbedding):
            return Embedding(source.embeddings[prefix]) if prefix in source.embeddings else None
        if not isinstance(layer, LinearBase):
            return None
        return Linear(source, prefix) if prefix in source.fused else UnquantizedLinearMethod()


@register_model_loader(METHOD)
class Loader(BaseModelLoader):
    """Fills vLLM's model from the trainer's."""

    def download_model(self, model_config: Any) -> None:
        pass

    def load_weights(self, model: Any, model_config: Any) -> None:
        loaded = model.load_weights(_sources[-1].tensors())
        missing = {name for name, parameter in model.named_parameters() if parameter.numel()} - loaded
        if missing:
            raise EngineError(f"the engine's model has weights that the trainer's lacks: {sorted(missing)[0]}")
