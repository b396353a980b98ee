"""Log-probabilities of given completions under the policy, without keeping logits, without computing on padding, and
with each prompt computed once for its completions (`packing.py`, `attention.py`).

The output head is frozen, so the gradient with respect to the hidden state is known in closed form and is computed
together with the value; a chunk's logits live only inside that chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapters import TinyLoRA
from adapters.base import float32_product, wide
from pipeline.rollout.sampling_support import WHOLE, Truncation
from pipeline.training.attention import hidden_states
from pipeline.training.packing import Pack, Tokens, packed, within_budget

CHUNK_ELEMENTS = 1 << 26  # logits computed at once


class _HeadLogProbs(torch.autograd.Function):
    """log p(token) and entropy from hidden states through a frozen linear head.

    With z = h Wᵀ / T and p = softmax(z): ∂ log p(y) / ∂h = (W[y] − pᵀ W) / T, and for the entropy H, differentiable
    only if asked for, ∂H / ∂h = −(p ∘ (log p + H))ᵀ W / T. Where p is truncated, its support is held fixed.
    What flows back is multiplied by the scale of `bank`, the adapter of the model, if there is one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        tokens: Tensor,
        temperature: float,
        truncation: Truncation,
        entropy_gradient: bool,
        bank: TinyLoRA | None,
    ) -> tuple[Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        log_probs = wide(hidden.new_empty(tokens.shape))
        entropies = torch.empty_like(log_probs)
        gradient = torch.empty_like(hidden) if needs_gradient else None
        of_entropy = torch.empty_like(hidden) if needs_gradient and entropy_gradient else None
        step = max(1, CHUNK_ELEMENTS // head.shape[0])
        for start in range(0, tokens.shape[0], step):
            part = slice(start, start + step)
            scores = float32_product(hidden[part], head) / temperature
            if truncation:
                scores = truncation.of(scores, tokens[part])
            scores = torch.log_softmax(scores, dim=-1)
            log_probs[part] = scores.gather(-1, tokens[part].unsqueeze(-1)).squeeze(-1)
            probabilities = scores.exp()
            entropies[part] = -(probabilities * scores).sum(dim=-1)
            if gradient is not None:
                expected = probabilities.to(head.dtype) @ head
                gradient[part] = ((head[tokens[part]] - expected) / temperature).to(hidden.dtype)
            if of_entropy is not None:
                weights = probabilities * (scores + entropies[part].unsqueeze(-1))
                of_entropy[part] = (-(weights.to(head.dtype) @ head) / temperature).to(hidden.dtype)
        ctx.bank = bank
        ctx.save_for_backward(*[x for x in (gradient, of_entropy) if x is not None])
        if of_entropy is None:
            ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        parts = list(zip(grads, ctx.saved_tensors, strict=False))  # one, where entropies have no gradient
        scale: Any = 1.0
        if ctx.bank is not None:
            scale = ctx.bank.scale_gradients([grad for grad, _ in parts], parts[0][1].dtype)
        total = sum((grad * scale).unsqueeze(-1).to(own.dtype) * own for grad, own in parts)
        return total, None, None, None, None, None, None  # type: ignore[return-value]


def completion_log_probs(
    model: Any,
    pack: Pack,
    width: int,
    temperature: float,
    truncation: Truncation = WHOLE,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every completion token at `temperature`, in float32, zero beyond a row's end.

    Both are of the truncated distribution. Returns two (B, width) tensors for the B completions of the pack; the first
    is differentiable in the adapter, with `entropy_gradient` both are.
    """
    hidden = hidden_states(model, pack.ids, pack.positions, pack.layout)
    head = model.get_output_embeddings().weight
    places = hidden.index_select(0, pack.places).to(head.dtype)
    values, entropy = _HeadLogProbs.apply(
        places, head, pack.tokens, temperature, truncation, entropy_gradient, getattr(model, "tinylora", None)
    )
    valid = torch.arange(width, device=hidden.device) < pack.lengths.unsqueeze(1)
    log_probs = values.new_zeros(valid.shape).masked_scatter(valid, values)
    return log_probs, torch.zeros_like(log_probs).masked_scatter(valid, entropy)


@torch.no_grad()
def log_probs_without_gradient(
    model: Any,
    prompts: Tokens,
    completions: Tokens,
    width: int,
    temperature: float,
    budget: int,
    truncation: Truncation = WHOLE,
) -> tuple[Tensor, Tensor]:
    """`completion_log_probs` of any number of completions, `budget` tokens at a time."""
    device = model.get_output_embeddings().weight.device
    log_probs = torch.zeros(len(prompts), width, device=device)
    entropies = torch.zeros_like(log_probs)
    for rows in within_budget(prompts, completions, budget):
        pack = packed([prompts[row] for row in rows], [completions[row] for row in rows], device)
        log_probs[rows], entropies[rows] = completion_log_probs(model, pack, width, temperature, truncation)
    return log_probs, entropies


def kl_k3(log_ratio: Tensor, mask: Tensor) -> float:
    """Mean per token of exp(d) − d − 1 with d = log q − log p on tokens drawn from p: an unbiased, non-negative
    estimate of KL(p ‖ q) (Schulman, "Approximating KL Divergence", 2020). Tokens without a value (NaN) are left out."""
    values = (torch.expm1(log_ratio) - log_ratio)[mask.bool() & ~log_ratio.isnan()]
    return float(values.mean()) if values.numel() else 0.0
