"""vLLM's FlashAttention backend, with steps of many sequences that read a prompt once for its whole group.

Where every sequence of a step decodes one token, and there are enough of them to keep a GPU busy, the kernels of
`adapters/kernels/attention.py` attend; in every other step FlashAttention, which divides the keys of a few long
sequences among many programs. It goes in by vLLM's own way to exchange a backend, so it serves where vLLM would have
chosen FlashAttention.

Left to FlashAttention: keys and values in FP8, and models whose attention has a window, soft caps, slopes or sinks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from adapters.kernels.attention import SharedPrompts

FEWEST = 160  # sequences of a step: below, FlashAttention, which cuts a sequence into parts, keeps more of a GPU busy


class SharedPromptMetadataBuilder(FlashAttentionMetadataBuilder):
    """Finds, once a step for all layers, what the sequences of the step share."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        rows = max(vllm_config.scheduler_config.max_num_seqs, self.max_cudagraph_size or 0)
        self._prompts = None
        if self.headdim & (self.headdim - 1) == 0 and kv_cache_spec.dtype in (torch.bfloat16, torch.float16):
            self._prompts = SharedPrompts(rows, self.num_heads_q, self.headdim, self.block_size, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> FlashAttentionMetadata:
        """FlashAttention's metadata, with `prompts` where the step is one of many that decode."""
        common = common_attn_metadata
        shares = common.max_query_len == 1 and common.num_reqs >= FEWEST and common.causal is True
        prompts = self._prompts if shares else None
        metadata = super().build(common_prefix_len, common, fast_build=fast_build or prompts is not None)
        if prompts is not None:
            prompts.find(common.block_table_tensor, common.seq_lens)
        metadata.prompts = prompts  # type: ignore[attr-defined]
        return metadata


class SharedPromptImpl(FlashAttentionImpl):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shares = (
            self.attn_type == AttentionType.DECODER
            and self.alibi_slopes is self.sinks is None
            and self.sliding_window == (-1, -1)
            and not self.logits_soft_cap
            and self.kv_cache_dtype in ("auto", "bfloat16", "float16")
            and self.dcp_world_size == 1
        )

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
        prompts = getattr(attn_metadata, "prompts", None)
        if prompts is None or not self._shares:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **options)
        rows = len(attn_metadata.seq_lens)
        prompts.attend(
            query[:rows], kv_cache, attn_metadata.block_table, attn_metadata.seq_lens, self.scale, output[:rows]
        )
        return output


class SharedPromptBackend(FlashAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        return SharedPromptImpl

    @staticmethod
    def get_builder_cls() -> type[FlashAttentionMetadataBuilder]:
        return SharedPromptMetadataBuilder


def register_shared_prompt_attention() -> None:
    """Engines built from now on have this backend where vLLM chooses FlashAttention."""
    register_backend(
        AttentionBackendEnum.FLASH_ATTN, f"{SharedPromptBackend.__module__}.{SharedPromptBackend.__qualname__}"
    )
