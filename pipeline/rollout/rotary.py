"""The rotary embedding in float32, in the trainer's forward pass and in vLLM's.

Queries and keys come and leave in bf16 or float16, as the attention kernels take them. In between the libraries also
round cosines and sines, and all but vLLM the products with them. Here these are float32, so a turned value is rounded
once. The kernels of vLLM and of Unsloth compute in the wider of two types, so they are given a float32 table and
nothing else; transformers' function is given float32 queries and keys. Only on a GPU: on a CPU all is float32.
"""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from adapters.base import wide


def keep_rotary(model: nn.Module) -> None:
    """Let a model that transformers or Unsloth made turn queries and keys by float32 cosines and sines.

    Unsloth's passes with a key-value cache keep their own way, and so do models that anything else made.
    """
    inner: Any = model.model
    made_by = type(inner.layers[0]).forward.__module__
    if made_by.startswith("unsloth.models."):
        rotary = type(inner.rotary_emb)(config=model.config)  # its tables are of the default type, float32
        for layer in inner.layers:
            layer.self_attn.register_forward_pre_hook(_GivesTable(rotary), with_kwargs=True)
    elif made_by.startswith("transformers.models."):
        inner.rotary_emb.forward = MethodType(_float32_table, inner.rotary_emb)
        _teach_transformers(sys.modules[made_by])


class _GivesTable:
    """Before an attention layer of Unsloth: in place of its cosines and sines, those of `rotary`, for as many positions
    and at least one a token, so that the layer makes none of its own."""

    def __init__(self, rotary: nn.Module) -> None:
        self.rotary = rotary

    def __call__(self, attention: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = options.get("position_embeddings")
        if given is None or options.get("use_cache"):
            return None
        x = arguments[0] if arguments else options["hidden_states"]
        rows = max(x.shape[1], len(given[0]))
        return arguments, options | {"position_embeddings": self.rotary(wide(x.new_empty(0)), seq_len=rows)}


def _float32_table(rotary: Any, x: Tensor, *arguments: Any, **options: Any) -> Any:
    """Of transformers' module, which rounds cosines and sines to the type of x and reads nothing else of it."""
    return type(rotary).forward(rotary, wide(x.new_empty(0)), *arguments, **options)


def _teach_transformers(module: Any) -> None:
    """Let the attention of one of transformers' modules read float32 tables; with bf16 ones it does what it did."""
    plain = module.apply_rotary_pos_emb
    if plain.__module__ != __name__:
        module.apply_rotary_pos_emb = rounded_once(plain)


def rounded_once(plain: Any) -> Any:
    """transformers' `apply_rotary_pos_emb`, computed in the type of cosines and sines, with results, and the gradients
    of queries and keys, in the types of these."""

    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        turned = plain(q.to(cos.dtype), k.to(cos.dtype), cos, sin, *arguments, **options)
        return turned[0].to(q.dtype), turned[1].to(k.dtype)

    return turn


def register_vllm_rotary() -> None:
    """Make vLLM keep its table of cosines and sines in float32; safe to call again.

    The table is made on the CPU, where Unsloth makes the trainer's, so the two are the same. vLLM's kernel takes it as
    it is: it reads either type, turns in float32 and rounds once. Other kinds of scaling than Llama 3's keep vLLM's. In
    a step whose attention turns queries and keys itself (`vllm/attention.py`) that is told the table.
    """
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.rotary_embedding import Llama3RotaryEmbedding, RotaryEmbedding

    class Float32Table:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            with torch.device("cpu"):
                table = self._compute_cos_sin_cache()  # type: ignore[attr-defined]
            self.cos_sin_cache = table.to(torch.empty(0).device)

        def _match_cos_sin_cache_dtype(self, query: Tensor) -> Tensor:
            return self.cos_sin_cache

        def forward_cuda(self, positions: Tensor, query: Tensor, key: Tensor | None = None) -> Any:
            from pipeline.rollout.vllm.attention import step_of_all_layers

            step = step_of_all_layers()
            in_halves = self.is_neox_style and self.rotary_dim == self.head_size  # type: ignore[attr-defined]
            if step is None or key is None or not in_halves:
                return super().forward_cuda(positions, query, key)  # type: ignore[misc]
            step.angles = self.cos_sin_cache
            return query, key

    for plain in (RotaryEmbedding, Llama3RotaryEmbedding):
        if plain.__name__ not in op_registry_oot:
            kept = type(f"Float32{plain.__name__}", (Float32Table, plain), {})
            plain.register_oot(name=plain.__name__)(kept)
