"""The forward pass of a Qwen2, Qwen3 or Llama with every rounding to bf16 named, to be switched on one by one.

Computed in float32 with values rounded to bf16 and back where bf16 arithmetic rounds them: a product of bf16 factors
on tensor cores is summed in float32 and rounded once, which is what this does, on any device. Two programs that round
at the same places still differ, in the order of their sums; one such difference anywhere, and no later rounding of
the two is the same any more. So their mismatch is near the sum of their distances from the exact policy.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SITES = {
    "residual": "the sum of the residual stream and a block's output",
    "normed": "what a norm multiplies with its weight",
    "norm": "a norm's output",
    "rotary table": "cosines and sines of the positions",
    "rotary": "the products that turned queries and keys are sums of",
    "turned": "turned queries and keys",
    "q, k, v": "the projections to queries, keys and values",
    "attention": "attention weights, and the heads' outputs",
    "gate, up": "the projections of the feed-forward block",
    "silu": "silu(gate)",
    "SwiGLU": "its product with up",
    "block output": "the projections that the residual stream takes in",
    "head input": "the last norm's output",
    "logits": "what the softmax reads",
}
KEPT = (  # in float32 by trainer and engine
    "logits", "residual", "normed", "block output", "rotary table", "rotary", "silu",
)  # fmt: skip


class RoundedForward:
    """`model`: a plain transformers model in float32, whose weights are used as they are. `sites`: what is rounded, to
    `dtype`. Raises `ValueError` for a place that is none."""

    def __init__(self, model: Any, sites: Collection[str], dtype: torch.dtype = torch.bfloat16) -> None:
        unknown = set(sites) - set(SITES)
        if unknown:
            raise ValueError(f"unknown place of rounding: {', '.join(sorted(unknown))}; use {', '.join(SITES)}")
        self.model, self.sites, self.dtype = model, frozenset(sites), dtype

    def log_probs(self, prompt: list[int], completion: list[int]) -> Tensor:
        """Log-probability of every completion token at temperature 1, (len(completion),) float32."""
        device = self.model.lm_head.weight.device
        hidden = self.hidden(torch.tensor([prompt + completion], device=device))[len(prompt) - 1 : -1]
        logits = self._at("logits", F.linear(self._at("head input", hidden), self.model.lm_head.weight))
        tokens = torch.tensor(completion, device=device).unsqueeze(-1)
        return torch.log_softmax(logits, dim=-1).gather(-1, tokens).squeeze(-1)

    def hidden(self, ids: Tensor) -> Tensor:
        """ids (1, L) → what the last norm gives, (L, H) float32, not rounded."""
        inner = self.model.model
        x = inner.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        # (1, L, d) of transformers; Unsloth, once imported, puts a table of all positions in its place
        table = [
            self._at("rotary table", part.reshape(-1, part.shape[-1])[: ids.shape[1]])
            for part in inner.rotary_emb(x, positions)
        ]
        x = x[0]
        for layer in inner.layers:
            output = self._attention(layer.self_attn, self._norm(layer.input_layernorm, x), table)
            x = self._at("residual", x + self._at("block output", output))
            output = self._feed_forward(layer.mlp, self._norm(layer.post_attention_layernorm, x))
            x = self._at("residual", x + self._at("block output", output))
        return self._norm(inner.norm, x, rounded=False)

    def _at(self, site: str, x: Tensor) -> Tensor:
        return x.to(self.dtype).float() if site in self.sites else x

    def _norm(self, norm: Any, x: Tensor, rounded: bool = True) -> Tensor:
        x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon)
        return self._at("norm", self._at("normed", x) * norm.weight) if rounded else x * norm.weight

    def _attention(self, block: Any, x: Tensor, table: list[Tensor]) -> Tensor:
        q, k, v = (
            self._at("q, k, v", part(x)).view(len(x), -1, block.head_dim).transpose(0, 1)
            for part in (block.q_proj, block.k_proj, block.v_proj)
        )
        if hasattr(block, "q_norm"):
            q, k = self._norm(block.q_norm, q), self._norm(block.k_norm, k)
        q, k = self._turn(q, table), self._turn(k, table)
        k, v = (part.repeat_interleave(len(q) // len(k), dim=0) for part in (k, v))
        scores = (q @ k.mT) * block.scaling
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
        weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()  # flash attention divides by their sum last
        heads = (self._at("attention", weights) @ v) / weights.sum(dim=-1, keepdim=True)
        return block.o_proj(self._at("attention", heads).transpose(0, 1).reshape(len(x), -1))

    def _turn(self, x: Tensor, table: list[Tensor]) -> Tensor:
        """x (heads, L, d) turned by the angles of its positions."""
        cos, sin = table
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return self._at("turned", self._at("rotary", x * cos) + self._at("rotary", turned * sin))

    def _feed_forward(self, block: Any, x: Tensor) -> Tensor:
        gate, up = (self._at("gate, up", part(x)) for part in (block.gate_proj, block.up_proj))
        return block.down_proj(self._at("SwiGLU", self._at("silu", F.silu(gate)) * up))
