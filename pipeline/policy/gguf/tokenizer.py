"""The tokenizer of a GGUF file: from the `tokenizer.json` next to it, or else from the file itself; and the tokens that
end a completion and pad a row, checked against the chat template.

A file names its vocabulary, and its rule for cutting text into words only by llama.cpp's name for it. The rules below
are those of the models in `architecture.SERVED`; a file with another one needs its tokenizer.json.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.policy.gguf.architecture import EMBEDDING
from pipeline.policy.gguf.header import Header
from storage.errors import UserError

BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
REMEDY = "put the model's tokenizer.json next to it"
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # of tokenizer.ggml.token_type

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre → expressions, applied one after another, whose matches become words
WORDS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "starcoder": [r"\p{N}", _GPT2],
    "qwen2": [_MODERN % ""],
    "deepseek-r1-qwen": [_MODERN % ""],
    "llama-bpe": [_MODERN % "{1,3}"],
}
# Tokens that end a text or a turn in every model that has them, as in llama.cpp; and what serves as padding.
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "</s>")
PADS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|endoftext|>", "<|end_of_text|>", "<unk>")


def files_beside(path: Path) -> list[Path]:
    """The tokenizer's files in the folder of a GGUF file; none without a tokenizer.json."""
    found = [path.with_name(name) for name in BESIDE if path.with_name(name).is_file()]
    return found if path.with_name(BESIDE[0]) in found else []


def load_tokenizer(header: Header, scratch: Path) -> Any:
    """The `PreTrainedTokenizerFast`, with its chat template, end and padding token.

    scratch: an empty folder. Raises `ConfigError` for a tokenizer.json that is damaged or another model's, for a
    vocabulary that is damaged, larger than the embedding or whose rule is not known, and without a chat template.
    """
    beside = files_beside(header.path)
    where, remedy = ("the tokenizer next to it", "replace or remove it") if beside else ("its vocabulary", REMEDY)
    try:
        tokenizer = _from_beside(header, beside, scratch) if beside else _from_file(header)
    except UserError:
        raise
    except Exception as error:  # whatever the libraries raise of damaged files and lists that do not fit together
        raise header.error(f"{where} cannot be read ({' '.join(str(error).split())}); {remedy}") from None
    last, rows = max(tokenizer.get_vocab().values(), default=0), header.tensors[EMBEDDING].shape[0]
    if last >= rows:
        raise header.error(f"{where} has a token of id {last}, and the embedding {rows} rows; {remedy}")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = header.metadata.get("tokenizer.chat_template")
    if tokenizer.chat_template is None:
        raise header.error(f"has no chat template, so problems cannot be asked; {REMEDY} and tokenizer_config.json")
    tokenizer.model_max_length = header.get("context_length", 2048)
    return tokenizer


def named_token(header: Header, role: str) -> str | None:
    """The text of the token that the file names by its id as "eos" and the like; None where it names none of its own.
    Raises `ConfigError` for what is no id."""
    key = f"tokenizer.ggml.{role}_token_id"
    tokens, index = header.metadata.get("tokenizer.ggml.tokens", []), header.metadata.get(key)
    if index is None:
        return None
    if type(index) is not int or index < 0:
        raise header.error(f"its header has {key} = {index!r}; convert the model again")
    return tokens[index] if index < len(tokens) else None


def _check_vocabulary(header: Header, tokenizer: Any) -> None:
    tokens = header.metadata.get("tokenizer.ggml.tokens", [])
    kinds = header.metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    known = tokenizer.get_vocab()
    wrong = [text for index, text in enumerate(tokens) if kinds[index] == NORMAL and known.get(text) != index]
    if wrong:
        why = f"the tokenizer.json next to it is another model's ({len(wrong):,} of {len(tokens):,} tokens differ)"
        raise header.error(f"{why}; remove it, or replace it with the right one")


def _from_beside(header: Header, files: list[Path], scratch: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    for file in files:
        shutil.copy(file, scratch)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(scratch)
    _check_vocabulary(header, tokenizer)
    return tokenizer


def _from_file(header: Header) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    metadata = header.metadata
    tokens, model = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.model")
    if not tokens or model not in ("gpt2", "llama"):
        raise header.error(f"its vocabulary ({model or 'none'}) cannot be read; {REMEDY}")
    kinds = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    vocabulary = {text: index for index, text in enumerate(tokens) if kinds[index] != 5}  # 5: a hole
    tokenizer = (_byte_level if model == "gpt2" else _sentence_piece)(header, vocabulary)
    for index, text in enumerate(tokens):
        if kinds[index] in (CONTROL, USER_DEFINED):
            token = AddedToken(text, normalized=False, special=kinds[index] == CONTROL)
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    special = {name: named_token(header, name) for name in ("bos", "eos")}
    named = {f"{name}_token": text for name, text in special.items() if text}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def _byte_level(header: Header, vocabulary: dict[str, int]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    rule = header.metadata.get("tokenizer.ggml.pre", "default")
    if rule not in WORDS:
        raise header.error(f"its rule for splitting text into words, '{rule}', is not supported; {REMEDY}")
    if not header.metadata.get("tokenizer.ggml.merges"):
        raise header.error(f"its vocabulary has no merges, so text cannot be split into its tokens; {REMEDY}")
    merges = [tuple(merge.split(" ")) for merge in header.metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule == "llama-bpe"))
    if "qwen" in rule:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in WORDS[rule]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(header: Header, vocabulary: dict[str, int]) -> Any:
    """Llama 2's kind: pairs are merged by the score of what they make."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import generate_merges

    scores = dict(zip(header.metadata["tokenizer.ggml.tokens"], header.metadata["tokenizer.ggml.scores"], strict=True))
    kinds = dict(zip(scores, header.metadata["tokenizer.ggml.token_type"], strict=True))
    unmerged = {text for text, kind in kinds.items() if kind != NORMAL}
    merges = generate_merges(vocabulary, {text: scores[text] for text in vocabulary}, unmerged)
    unknown = named_token(header, "unknown")
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix = header.metadata.get("tokenizer.ggml.add_space_prefix", True)
    scheme = "first" if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def settle_ends(header: Header, tokenizer: Any) -> list[int]:
    """Set the tokenizer's end and padding token; returns every token that ends a completion, that of a turn first.

    The end is what the chat template puts behind an answer: whoever names another token is overruled. Where it renders
    no answer, the named end is taken.
    The padding token is one that no conversation holds. Raises `ConfigError` where no token ends an answer.
    """
    known, mark = tokenizer.get_vocab(), "~2468~"  # which stays as it is in capitals, too
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    try:
        turns = [{"role": "user", "content": "~1357~"}, {"role": "assistant", "content": mark}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # whatever the template raises, in Jinja or of its own
        raise header.error(f"its chat template fails on a conversation ({error})") from None
    before, _, after = text.rpartition(mark) if mark in text else ("", "", "")  # a template may know no answers
    opening, closing = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after))
    declared = [tokenizer.eos_token, *(named_token(header, name) for name in ("eos", "eot", "eom")), *ENDS]
    candidates = [known[text] for text in declared if text in known and known[text] in added]
    end = next((index for index in closing if index in added), None)
    if end is None:
        end = next((index for index in candidates if index not in opening), None)
    if end is None:
        raise header.error(f"no special token ends an answer in its chat template; {REMEDY} and tokenizer_config.json")
    ends = list(dict.fromkeys([end, *(index for index in candidates if index not in opening)]))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    used = {*opening, *closing, end}
    pads = [tokenizer.pad_token, named_token(header, "padding"), *PADS]
    tokenizer.pad_token = next(
        (text for text in pads if text in known and known[text] not in used), tokenizer.eos_token
    )
    return ends
