"""Log-probabilities of given completions under the policy, without keeping logits and without computing on padding.

Rows are laid out as prompt + completion from the left, so causal attention needs no mask: what is right of a row's end
never influences it. The output head is frozen, so the gradient with respect to the hidden state is known in closed form
and is computed together with the value; a chunk's logits live only inside that chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.rollout.sampling_support import WHOLE, Truncation

CHUNK_ELEMENTS = 1 << 26  # logits computed at once


def float32_product(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ in float32, also of bf16 factors: logits near 20 that are rounded to bf16 carry 0.03 nats of noise."""
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, weight.mT, out_dtype=torch.float32)
    return (x @ weight.mT).float()


class _HeadLogProbs(torch.autograd.Function):
    """log p(token) and entropy from hidden states through a frozen linear head.

    With z = h Wᵀ / T and p = softmax(z): ∂ log p(y) / ∂h = (W[y] − pᵀ W) / T, and for the entropy H, differentiable
    only if asked for, ∂H / ∂h = −(p ∘ (log p + H))ᵀ W / T. Where p is truncated, its support is held fixed.
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
    ) -> tuple[Tensor, Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        log_probs = torch.empty(tokens.shape, dtype=torch.float32, device=hidden.device)
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
        ctx.save_for_backward(*[x for x in (gradient, of_entropy) if x is not None])
        if of_entropy is None:
            ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        parts = zip(grads, ctx.saved_tensors, strict=False)  # without the second where entropies have no gradient
        total = sum(grad.unsqueeze(-1).to(own.dtype) * own for grad, own in parts)
        return total, None, None, None, None, None  # type: ignore[return-value]


def packed_rows(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor, pad: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of prompt + completion without the padding between them.

    All inputs (B, ·), prompts padded on the left, completions on the right. Returns ids (B, L) with L the longest real
    row, prompt lengths (B,) and completion lengths (B,).
    """
    prompts, completions = prompt_mask.sum(dim=1), completion_mask.sum(dim=1)
    width = int((prompts + completions).max())
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    start = (prompt_ids.shape[1] - prompts).unsqueeze(1)
    position = torch.arange(width, device=ids.device).unsqueeze(0)
    rows = ids.gather(1, (start + position).clamp(max=ids.shape[1] - 1))
    return rows.masked_fill(position >= (prompts + completions).unsqueeze(1), pad), prompts, completions


def completion_log_probs(
    model: Any,
    rows: Tensor,
    prompts: Tensor,
    completions: Tensor,
    width: int,
    temperature: float,
    truncation: Truncation = WHOLE,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every completion token at `temperature`, in float32, zero beyond a row's end.

    rows (B, L) from `packed_rows`, prompts and completions (B,) lengths. Both are of the truncated distribution.
    Returns two (B, width) tensors; the first is differentiable in the adapter, with `entropy_gradient` both are.
    """
    hidden = model.model(input_ids=rows, use_cache=False).last_hidden_state  # (B, L, H)
    position = torch.arange(width, device=rows.device).unsqueeze(0)
    valid = position < completions.unsqueeze(1)
    row = torch.arange(rows.shape[0], device=rows.device).unsqueeze(1).expand(-1, width)[valid]
    column = (prompts.unsqueeze(1) + position)[valid]
    head = model.get_output_embeddings().weight
    places, tokens = hidden[row, column - 1].to(head.dtype), rows[row, column]
    values, entropy = _HeadLogProbs.apply(places, head, tokens, temperature, truncation, entropy_gradient)
    log_probs = torch.zeros(valid.shape, dtype=torch.float32, device=rows.device).masked_scatter(valid, values)
    return log_probs, torch.zeros_like(log_probs).masked_scatter(valid, entropy)


def unpadded_rows(prompt_ids: list[list[int]], completion_ids: list[list[int]], device: Any) -> tuple[Tensor, ...]:
    """The same from token ids: rows (B, L), prompt lengths (B,) and completion lengths (B,) on `device`."""
    ids = [torch.tensor(prompt + rest) for prompt, rest in zip(prompt_ids, completion_ids, strict=True)]
    lengths = [torch.tensor([len(part) for part in parts], device=device) for parts in (prompt_ids, completion_ids)]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device), *lengths


@torch.no_grad()
def log_probs_without_gradient(
    model: Any,
    rows: Tensor,
    prompts: Tensor,
    completions: Tensor,
    width: int,
    temperature: float,
    budget: int,
    truncation: Truncation = WHOLE,
) -> tuple[Tensor, Tensor]:
    """`completion_log_probs` of any number of rows, `budget` tokens at a time."""
    log_probs = torch.zeros(rows.shape[0], width, device=rows.device)
    entropies = torch.zeros_like(log_probs)
    lengths = prompts + completions
    for part in token_budget_batches(lengths, budget):
        longest = int(lengths[part].max())
        log_probs[part], entropies[part] = completion_log_probs(
            model, rows[part, :longest], prompts[part], completions[part], width, temperature, truncation
        )
    return log_probs, entropies


def token_budget_batches(lengths: Tensor, budget: int) -> Iterator[Tensor]:
    """Indices of rows grouped by similar length, so that rows × longest stays within `budget` tokens (or one row)."""
    order = lengths.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        count = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + count]
        start += count


def kl_k3(log_ratio: Tensor, mask: Tensor) -> float:
    """Mean per token of exp(d) − d − 1 with d = log q − log p on tokens drawn from p: an unbiased, non-negative
    estimate of KL(p ‖ q) (Schulman, "Approximating KL Divergence", 2020). Tokens without a value (NaN) are left out."""
    values = (torch.expm1(log_ratio) - log_ratio)[mask.bool() & ~log_ratio.isnan()]
    return float(values.mean()) if values.numel() else 0.0
