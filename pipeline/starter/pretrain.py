"""Pretraining of the starter model: a tokenizer, a small Qwen2 and its training loop.

Imported by `scripts/make_starter.py` only, because it needs torch. The loss is next-token cross-entropy; tokens of the
prompt count with `PROMPT_WEIGHT`, tokens of the program (and the end of turn) fully. Sequences are padded on the right
and attention is causal, so no mask is needed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from data.starter.authors import CAREFUL_SHARE
from pipeline.starter import corpus
from pipeline.starter.corpus import END_OF_TURN, PADDING, START_OF_TURN

PROMPT_WEIGHT = 0.1
# The split of Qwen2's tokenizer: words with their leading space, single digits, runs of punctuation or white space.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the starter becomes."""

    examples: int = 150_000
    steps: int = 3000
    batch_tokens: int = 32_768
    learning_rate: float = 2e-3
    careful_share: float = CAREFUL_SHARE
    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 768
    seed: int = 0


def train_tokenizer(texts: list[tuple[str, str]], recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen2's way of splitting text and its chat marks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PADDING, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prompt + completion for prompt, completion in texts[:10_000]), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TURN, pad_token=PADDING, model_max_length=1024
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A fresh float32 Qwen2. All projections have sizes that are multiples of 64, as NF4 blocks need."""
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.backend_tokenizer.token_to_id(END_OF_TURN),
        pad_token_id=tokenizer.backend_tokenizer.token_to_id(PADDING),
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """(token ids of prompt and completion, length of the prompt) of every example."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    prompts = backend.encode_batch_fast([prompt for prompt, _ in texts], add_special_tokens=False)
    completions = backend.encode_batch_fast([completion for _, completion in texts], add_special_tokens=False)
    return [(p.ids + c.ids, len(p.ids)) for p, c in zip(prompts, completions, strict=True)]


def batches(examples: list[tuple[list[int], int]], recipe: Recipe) -> Iterator[list[tuple[list[int], int]]]:
    """Endless batches of near-equal lengths with at most `batch_tokens` tokens, padding included, in random order."""
    rng = Random(recipe.seed)
    while True:
        order = sorted(examples, key=lambda example: len(example[0]) + rng.random() * 16)
        groups: list[list[tuple[list[int], int]]] = [[]]
        for example in order:
            longest = max(len(example[0]), max((len(ids) for ids, _ in groups[-1]), default=0))
            if groups[-1] and longest * (len(groups[-1]) + 1) > recipe.batch_tokens:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        yield from groups


def collate(
    batch: list[tuple[list[int], int]], padding: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ids` (B, T) int64 and `weight` (B, T - 1) float32: how much the prediction of token t + 1 counts."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), width), padding)
    weight = torch.zeros(len(batch), width - 1)
    for row, (tokens, prompt) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weight[row, : prompt - 1] = PROMPT_WEIGHT
        weight[row, prompt - 1 : len(tokens) - 1] = 1.0
    return ids.to(device), weight.to(device)


def train(
    model: Qwen2ForCausalLM, examples: list[tuple[list[int], int]], recipe: Recipe, device: torch.device
) -> float:
    """Train in place (bf16 autocast on a GPU, float32 on a CPU). Returns the mean loss of the last 2 % of steps."""
    torch.nn.Module.to(model, device).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )
    warmup = max(1, recipe.steps // 20)

    def rate(step: int) -> float:
        done = (step - warmup) / max(1, recipe.steps - warmup)
        return (step + 1) / warmup if step < warmup else 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    source = batches(examples, recipe)
    losses: list[torch.Tensor] = []
    tail = max(1, recipe.steps // 50)
    bar = tqdm(range(recipe.steps), desc="pretrain", unit="step")
    for step in bar:
        ids, weight = collate(next(source), model.config.pad_token_id or 0, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        each = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (each * weight.flatten()).sum() / weight.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        program = weight.flatten() == 1.0
        losses.append((each.detach() * program).sum() / program.sum())
        if step % 20 == 19 or step == recipe.steps - 1:
            recent = torch.stack(losses[-20:]).mean().item()
            bar.set_postfix(loss_per_program_token=f"{recent:.4f}")
    return torch.stack(losses[-tail:]).mean().item()


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, loss: float, out: Path) -> None:
    """Write the model in bfloat16, its tokenizer and `recipe.json`; the folder appears whole or not at all."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    torch.nn.Module.to(model, "cpu", torch.bfloat16).eval()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    note: dict[str, Any] = asdict(recipe) | {
        "loss_per_program_token": round(loss, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (temporary / "recipe.json").write_text(json.dumps(note, indent=2) + "\n")
    previous = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(previous)
    temporary.rename(out)
    if previous.exists():
        shutil.rmtree(previous)


def make(recipe: Recipe, out: Path, device: torch.device) -> float:
    """The whole recipe: corpus, tokenizer, model, training, files. Returns the final loss per program token."""
    torch.backends.cuda.matmul.allow_tf32 = True
    texts = corpus.texts(recipe.examples, recipe.seed, recipe.careful_share)
    tokenizer = train_tokenizer(texts, recipe)
    examples = encode(tokenizer, texts)
    lengths = sorted(len(ids) for ids, _ in examples)
    prompts = sorted(prompt for _, prompt in examples)
    print(f"tokens: longest prompt {prompts[-1]}, median example {lengths[len(lengths) // 2]}, longest {lengths[-1]}")
    model = build_model(recipe, tokenizer)
    print(f"parameters: {sum(p.numel() for p in model.parameters()):,} on {device}")
    loss = train(model, examples, recipe, device)
    save(model, tokenizer, recipe, loss, out)
    return loss
