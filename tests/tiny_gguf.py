"""Random models of a few thousand weights as GGUF files, as llama.cpp writes them, with faults on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny_model import CHAT_TEMPLATE

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def tiny_model(architecture: str, *, tied: bool = True, **changes: Any) -> Any:
    """A random float32 model whose weights bfloat16 holds exactly; its biases and norms are random, too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, tie_word_embeddings=tied, **SIZES | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
        parameter.data = parameter.to(torch.bfloat16).float()
    return model


def save_tiny_gguf(
    path: Path,
    model: Any,
    *,
    twice: bool = False,
    quantised: bool = False,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    edit: Callable[[dict[str, Any]], Any] | None = None,
) -> Path:
    """Write `model` to `path`.

    twice: hold the tied embedding as an output head, too. quantised: matrices in Q8_0, the head in F32; all are F32
    otherwise. metadata, tensors: added. edit: changes the fields of the tokenizer.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    kind, config = model.config.model_type, model.config
    writer = GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for key, value in (metadata or {}).items():
        writer.add_key_value(key, value, _type(value))
    _add_tokenizer(writer, config.vocab_size, edit)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings and not twice:
        del weights["lm_head.weight"]
    for name, value in weights.items():
        theirs = _their_name(name)
        if kind == "llama" and theirs.split(".")[-2] in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if "attn_q" in theirs else config.num_key_value_heads
            value = value.reshape(heads, 2, -1, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)
        if quantised and value.ndim == 2 and theirs != "output.weight":
            form = GGMLQuantizationType.Q8_0
            writer.add_tensor(theirs, quantize(np.ascontiguousarray(value), form), raw_dtype=form)
        else:
            writer.add_tensor(theirs, np.array(value))
    for theirs, value in (tensors or {}).items():
        writer.add_tensor(theirs, np.asarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _their_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(f"{ours}.", f"{theirs}.")
    return name


def _type(value: Any) -> Any:
    from gguf import GGUFValueType

    kinds = {str: GGUFValueType.STRING, float: GGUFValueType.FLOAT32, bool: GGUFValueType.BOOL}
    kinds[int] = GGUFValueType.INT32 if isinstance(value, int) and value < 0 else GGUFValueType.UINT32
    return GGUFValueType.ARRAY if isinstance(value, list) else kinds[type(value)]


def _add_tokenizer(writer: Any, size: int, edit: Callable[[dict[str, Any]], Any] | None) -> None:
    from tokenizers import pre_tokenizers

    tokens = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt"]
    holes = [f"[PAD{index}]" for index in range(len(tokens), size)]
    fields: dict[str, Any] = {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "qwen2",
        "token_list": tokens + holes,
        "token_types": [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)) + [5] * len(holes),
        "token_merges": ["Ġ t"],
        "eos_token_id": 2,
        "pad_token_id": 0,
        "chat_template": CHAT_TEMPLATE,
    }
    if edit is not None:
        edit(fields)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
