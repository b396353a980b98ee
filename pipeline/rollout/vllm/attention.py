"""vLLM's FlashAttention backend, with kernels of ours for steps in which every sequence decodes one token.

In such a step the kernels of `adapters/kernels/` turn the new token's queries and keys, write it into the cache and
attend: for many sequences `attention.py`, which reads a prompt once for its whole group, for fewer `few_sequences.py`,
which divides the keys of a sequence among many programs. So the rotary embedding (`rotary.py`) hands its table on
instead of turning, and the backend writes nothing. In every other step all is vLLM's. It goes in by vLLM's own way to
exchange a backend, so it serves where vLLM would have chosen FlashAttention.

Left to vLLM: keys and values in FP8, and models whose attention has a window, soft caps, slopes or sinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from adapters.kernels.attention import SharedPrompts
from adapters.kernels.few_sequences import FewSequences

FEWEST = 160  # sequences that prompts are read once for: with fewer, one kernel of more programs is faster
WIDTHS = (16, 32, 64, 128)  # of heads: powers of two; of wider ones, keys and values need more than 99 KB of memory


@dataclass
class DecodingStep:
    """A step in which every sequence decodes one token. way: whose `attend` it takes."""

    way: SharedPrompts | FewSequences
    angles: Tensor | None = None  # that the layer about to attend turns queries and keys by, as nobody else did


class DecodingMetadataBuilder(FlashAttentionMetadataBuilder):
    """Chooses, once a step for all layers, the kernels, and finds what the sequences of the step share."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        layers = [vllm_config.compilation_config.static_forward_context[name] for name in layer_names]
        self._few: FewSequences | None = None
        narrow = self.headdim in WIDTHS and kv_cache_spec.dtype in (torch.bfloat16, torch.float16)
        if narrow and all(map(kernels_serve, layers)):
            rows = max(vllm_config.scheduler_config.max_num_seqs, self.max_cudagraph_size or 0)
            processors = torch.cuda.get_device_properties(device).multi_processor_count
            shape = self.num_heads_q, self.num_heads_kv, self.headdim, self.block_size
            self._few = FewSequences(min(rows, FEWEST - 1), *shape, 2 * processors, device)
            self._prompts = SharedPrompts(rows, *shape, processors, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> FlashAttentionMetadata:
        """FlashAttention's metadata, with a `step` where it is one in which all decode."""
        common = common_attn_metadata
        decodes = self._few is not None and common.max_query_len == 1 and common.causal is True
        metadata = super().build(common_prefix_len, common, fast_build=fast_build or decodes)
        metadata.step = None  # type: ignore[attr-defined]
        if decodes:
            way: SharedPrompts | FewSequences = self._few  # type: ignore[assignment]
            if common.num_reqs >= FEWEST:
                way = self._prompts
                way.find(common.block_table_tensor, common.seq_lens)
            metadata.step = DecodingStep(way)  # type: ignore[attr-defined]
        return metadata


def kernels_serve(layer: Any) -> bool:
    """Whether our kernels can attend for one of vLLM's attention layers."""
    impl = layer.impl
    return (
        isinstance(impl, DecodingImpl)
        and impl.attn_type == AttentionType.DECODER
        and impl.alibi_slopes is impl.sinks is None
        and impl.sliding_window == (-1, -1)
        and not impl.logits_soft_cap
        and impl.kv_cache_dtype in ("auto", "bfloat16", "float16")
        and impl.dcp_world_size == 1
        and layer.kv_sharing_target_layer_name is None
    )


def step_of_all_layers() -> DecodingStep | None:
    """The step that is being computed, if all decode in it and no layer attends in another way."""
    metadata = get_forward_context().attn_metadata if is_forward_context_available() else None
    different = {id(one): one for one in metadata.values()} if isinstance(metadata, dict) else {}
    return getattr(different.popitem()[1], "step", None) if len(different) == 1 else None


class DecodingImpl(FlashAttentionImpl):
    def do_kv_cache_update(self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slots: Tensor) -> None:
        metadata = get_forward_context().attn_metadata
        if not isinstance(metadata, dict) or metadata[layer.layer_name].step is None:
            super().do_kv_cache_update(layer, key, value, kv_cache, slots)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *args: Any,
        **options: Any,
    ) -> Tensor:
        step = getattr(attn_metadata, "step", None)
        if step is None:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **options)
        rows = len(attn_metadata.seq_lens)
        angles, step.angles = step.angles, None
        places = angles, kv_cache, attn_metadata.block_table, attn_metadata.seq_lens
        step.way.attend(query[:rows], key[:rows], value[:rows], *places, self.scale, output[:rows])
        return output


class DecodingBackend(FlashAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        return DecodingImpl

    @staticmethod
    def get_builder_cls() -> type[FlashAttentionMetadataBuilder]:
        return DecodingMetadataBuilder


def register_decoding_attention() -> None:
    """Engines built from now on have this backend where vLLM chooses FlashAttention."""
    register_backend(AttentionBackendEnum.FLASH_ATTN, f"{DecodingBackend.__module__}.{DecodingBackend.__qualname__}")
