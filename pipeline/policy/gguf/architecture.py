"""What a GGUF file is a model of, in transformers' terms, from its header alone; and which models are refused.

Served are Qwen2, Qwen3 and Llama as llama.cpp writes them. Everything that a file holds must have a place in the model
that is made of it: a bias, a scale or a factor that is silently left out would be another model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from pipeline.policy.gguf.header import Header, TensorPlace

SERVED = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
EMBEDDING, OUTPUT, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
# Llama 3.1 and later; the file keeps only the factors that follow from these and from `factor`.
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Settings that the models in `SERVED` do not have in transformers → the values that change nothing.
NEUTRAL: dict[str, tuple[float, ...]] = {
    "logit_scale": (0, 1),  # this and the next three: of MiniCPM, Granite, Command-R
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "attention.scale": (0, 1),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "rope.scaling.attn_factor": (1,),
}
SAME_MATRIX = 0.5  # relative distance; roundings to 2 bits are 0.3 apart, matrices of their own 1.4
COMPARED_ROWS = 512


def refusal(settings: Mapping[str, Any], kind: str) -> str | None:
    """Why a model of type `kind` cannot be served: its settings have what our head does not compute, or it is not in
    `SERVED`. `settings` are those of a config.json, or of a GGUF file."""
    served = f"TinyLoRA trains {', '.join(SERVED.values())}"
    for name, value in settings.items():
        last = name.rpartition(".")[2]
        if last.endswith("logit_softcapping") and value:
            return f"'{kind}' caps its logits ({name}), which the training pass does not; {served}"
        if last in ("logit_scale", "logits_scaling", "logits_scale") and value not in (None, 0, 1):
            return f"'{kind}' scales its logits ({name}), which the training pass does not; {served}"
    if kind not in SERVED:
        return f"its architecture is '{kind}'; {served}"
    layers = settings.get("layer_types")
    if layers is None and settings.get("use_sliding_window"):  # as transformers has it, of layers from one on
        layers = ["sliding_attention"] * (settings.get("num_hidden_layers", 1) - settings.get("max_window_layers", 0))
    other = next((layer for layer in layers or [] if layer != "full_attention"), None)
    if other is not None:
        return f"'{kind}' has layers with {other}, where the training pass attends to everything; {served}"
    return None


def check_architecture(header: Header) -> None:
    """Raise `ConfigError`, naming the feature, for a file that cannot be trained faithfully."""
    kind, tensors = header.architecture, header.tensors
    found = refusal(header.metadata, kind)
    if "output.bias" in tensors:
        found = f"the output head of '{kind}' has a bias (output.bias), which the training pass does not add"
    if found is None and header.get("expert_count", 0):
        found = f"a mixture of {header.get('expert_count')} experts, whose routers cannot be trained this way"
    foreign = [name for name, values in NEUTRAL.items() if header.get(name, values[0]) not in values]
    if found is None and foreign:
        setting = f"{kind}.{foreign[0]} = {header.get(foreign[0])!r}"
        found = f"'{kind}' with {setting}, which {SERVED[kind]} in transformers does not have"
    scaling = header.get("rope.scaling.type")
    if found is None and scaling not in (None, "", "none", "linear"):
        found = f"its positions are scaled ({scaling}), which is not supported"
    factors = [key for key in ("rope.scaling.factor", "rope.scale_linear") if header.get(key, 0) not in (0, 1)]
    if found is None and scaling != "none" and factors:  # without a type, llama.cpp scales linearly
        found = f"its positions are scaled ({kind}.{factors[0]}), which is not supported"
    if found is None and header.get("attention.sliding_window", 0):
        found = f"'{kind}' attends to a window only ({kind}.attention.sliding_window), which is not supported"
    if found is not None:
        raise header.error(found)
    places, head = parameter_places(header), _sizes(header)["head_dim"]
    if header.get("rope.dimension_count", head) != head:
        raise header.error(f"rotates only a part of each head, which {SERVED[kind]} does not")
    shapes = {name: shape for name, (_, shape) in places.items()}
    optional = {OUTPUT: shapes[EMBEDDING], ROPE_FACTORS: (head // 2,)}
    shapes |= {name: shape for name, shape in optional.items() if name in tensors}
    for name in tensors:
        if name not in shapes:
            what = "a bias" if name.endswith(".bias") else "a tensor"
            raise header.error(f"contains {what} that {SERVED[kind]} does not have ({name})")
    for name, shape in shapes.items():
        if name not in tensors:
            raise header.error(f"the tensor {name} is missing; download it again")
        if tensors[name].shape != shape:
            found = f"{name} has shape {tensors[name].shape} instead of {shape}"
            raise header.error(f"{found}, which its header gives; convert the model again")
    _check_formats(header)


def parameter_places(header: Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF's tensor name → transformers' parameter name and shape, without the output head. Raises `ConfigError`
    for a size that the header lacks."""
    sizes = _sizes(header)
    hidden, between, head = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    query, key = sizes["num_attention_heads"] * head, sizes["num_key_value_heads"] * head
    vocabulary = header.tensors[EMBEDDING].shape[0] if EMBEDDING in header.tensors else 0
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,), "attn_q": (query, hidden), "attn_k": (key, hidden), "attn_v": (key, hidden),
        "attn_output": (hidden, query), "ffn_norm": (hidden,), "ffn_gate": (between, hidden),
        "ffn_up": (between, hidden), "ffn_down": (hidden, between), "attn_q_norm": (head,), "attn_k_norm": (head,),
    }  # fmt: skip
    places: dict[str, tuple[str, tuple[int, ...]]] = {
        EMBEDDING: ("model.embed_tokens.weight", (vocabulary, hidden)),
        "output_norm.weight": ("model.norm.weight", (hidden,)),
    }
    for layer in range(sizes["num_hidden_layers"]):
        for theirs, ours in (LAYER | (QK_NORMS if header.architecture == "qwen3" else {})).items():
            places[f"blk.{layer}.{theirs}.weight"] = (f"model.layers.{layer}.{ours}.weight", shapes[theirs])
            if header.architecture == "qwen2" and theirs in ("attn_q", "attn_k", "attn_v"):
                places[f"blk.{layer}.{theirs}.bias"] = (f"model.layers.{layer}.{ours}.bias", shapes[theirs][:1])
    return places


def _sizes(header: Header) -> dict[str, Any]:
    heads, hidden = header.number("attention.head_count"), header.number("embedding_length")
    layers = header.number("block_count")
    if layers > len(header.tensors):  # before a list of so many is made
        raise header.error(f"it holds {len(header.tensors)} tensors for {layers} layers; download it again")
    return {
        "hidden_size": hidden,
        "intermediate_size": header.number("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": header.number("attention.head_count_kv", heads),
        "head_dim": header.number("attention.key_length", hidden // heads),
    }


def model_config(header: Header) -> dict[str, Any]:
    """The content of the model's config.json, without the tokens that end and pad. Reads some rows of the embeddings
    where the file has an output head too: often it is the same matrix once more."""
    sizes, theta = _sizes(header), float(header.number("rope.freq_base", 10000.0, float))
    epsilon = header.number("attention.layer_norm_rms_epsilon", 1e-6, float)
    return {
        "model_type": header.architecture,
        "architectures": [f"{SERVED[header.architecture]}ForCausalLM"],
        **sizes,
        "vocab_size": header.tensors[EMBEDDING].shape[0],
        "max_position_embeddings": header.number("context_length", 2048),
        "rms_norm_eps": float(f"{epsilon:.6g}"),  # stored as a float32
        "rope_parameters": {"rope_theta": theta, **_rope(header, sizes["head_dim"], theta)},
        "tie_word_embeddings": is_tied(header),
        "dtype": "bfloat16",
    }


def _rope(header: Header, head: int, theta: float) -> dict[str, Any]:
    """The scaling of positions. Llama 3.1's comes as one factor for each frequency, from which its settings are found.

    Raises `ConfigError` where the factors follow from no settings that are known.
    """
    if ROPE_FACTORS not in header.tensors:
        return {"rope_type": "default"}
    factors = dequantised(header, header.tensors[ROPE_FACTORS]).tolist()
    largest, length = max(factors), LLAMA3_ROPE["original_max_position_embeddings"]
    low, high = LLAMA3_ROPE["low_freq_factor"], LLAMA3_ROPE["high_freq_factor"]
    for index, factor in enumerate(factors):
        turns = length * theta ** (-2 * index / head) / (2 * math.pi)  # of this frequency over the original length
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        if not math.isclose(factor, 1 / ((1 - smooth) / largest + smooth), rel_tol=1e-3):
            raise header.error(f"its factors of positions ({ROPE_FACTORS}) are not Llama 3's")
    return {"rope_type": "llama3", "factor": largest, **LLAMA3_ROPE}


def is_tied(header: Header) -> bool:
    """Whether one matrix is both embedding and output head: the file holds one, or the same one twice, which may be
    rounded in two ways."""
    if OUTPUT not in header.tensors:
        return True
    return _same_matrix(header.path, header.tensors[EMBEDDING], header.tensors[OUTPUT])


@cache
def _same_matrix(path: Any, embedding: TensorPlace, output: TensorPlace) -> bool:
    import numpy as np

    step = max(1, embedding.shape[0] // COMPARED_ROWS)
    rows = [_rows(path, place)[::step] for place in (embedding, output)]
    first, second = (_values(part, place.kind) for part, place in zip(rows, (embedding, output), strict=True))
    return bool(np.linalg.norm(first - second) < SAME_MATRIX * np.linalg.norm(second))


def dequantised(header: Header, place: TensorPlace) -> Any:
    """A tensor as a float32 numpy array."""
    return _values(_rows(header.path, place), place.kind).reshape(place.shape)


def _check_formats(header: Header) -> None:
    """Raise `ConfigError` for a number format that the package `gguf` cannot dequantise; tries a row of each."""
    for place in {place.kind: place for place in header.tensors.values()}.values():
        try:
            _values(_rows(header.path, place)[:1], place.kind)
        except NotImplementedError as error:
            raise header.error(f"cannot be dequantised ({error}); take a file in Q8_0 or Q4_K_M") from None


def _rows(path: Any, place: TensorPlace) -> Any:
    """The bytes of a tensor, a line for each row."""
    import numpy as np

    data = np.memmap(path, dtype=np.uint8, mode="r", offset=place.start, shape=(place.size,))
    return data.reshape(math.prod(place.shape[:-1]), -1)


def _values(rows: Any, kind: int) -> Any:
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize

    return np.asarray(dequantize(rows, GGMLQuantizationType(kind)), dtype=np.float32)
