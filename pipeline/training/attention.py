"""Attention of a row in which completions stand behind a prompt that was computed once.

Every segment, a prompt or a completion, attends to itself causally; completions also attend to the whole of their
prompt. The two parts of a query's softmax are computed apart and merged by their log-sum-exps. The gradient is exact
part by part: with the merged output and log-sum-exp a kernel's backward pass gives that part's share (Liu et al., "Ring
Attention", arXiv 2310.01889). No mask is formed. On a GPU both parts are flash kernels over many sequences, on a CPU
one kernel call a sequence.

The layout of a row travels as a keyword of the model's forward pass, so it is there again when a layer is recomputed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEYWORD = "prefix_seg_info"  # the one that Unsloth hands down to its attention; transformers hands down any


@dataclass(frozen=True)
class Spans:
    """Sequences that follow one another: their lengths, and on the device where each begins and the last one ends, (n +
    1,) int32."""

    lengths: list[int]
    offsets: Tensor

    @classmethod
    def of(cls, lengths: list[int], device: Any) -> Spans:
        return cls(lengths, torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32, non_blocking=True))

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass
class Layout:
    """What attends to what in a row of N tokens: shared prompts first, then rows that share nothing, then the
    completions behind the prompts, in the prompts' order.

    segments: all of them, each causal. prompts: those that are shared. behind: of each of these the tokens of all
    its completions. used: whether a model's attention has read this.
    """

    segments: Spans
    prompts: Spans
    behind: Spans
    used: bool = False


class _SharedPrompts(torch.autograd.Function):
    """Attention of queries (N, heads, d) to keys and values (N, heads or fewer, d) as `layout` says → (N, heads, d)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        segments, prompts, behind = layout.segments, layout.prompts, layout.behind
        out, lse = _forward(q, k, v, segments, segments, True, scale)
        if behind.tokens:
            shared, first = prompts.tokens, len(q) - behind.tokens
            other, other_lse = _forward(q[first:], k[:shared], v[:shared], behind, prompts, False, scale)
            merged = torch.logaddexp(lse[:, first:], other_lse)
            weight = (other_lse - merged).exp().mT.unsqueeze(-1)
            out[first:] = torch.lerp(out[first:].to(lse.dtype), other.to(lse.dtype), weight)
            lse[:, first:] = merged
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        q, k, v, out, lse = ctx.saved_tensors
        segments, prompts, behind = ctx.layout.segments, ctx.layout.prompts, ctx.layout.behind
        grad = grads[0].contiguous()
        to_q, to_k, to_v = _backward(grad, q, k, v, out, lse, segments, segments, True, ctx.scale)
        if behind.tokens:
            shared, first = prompts.tokens, len(q) - behind.tokens
            keys, values, merged = k[:shared], v[:shared], lse[:, first:].contiguous()
            more = _backward(
                grad[first:], q[first:], keys, values, out[first:], merged, behind, prompts, False, ctx.scale
            )
            to_q[first:] += more[0]
            to_k[:shared] += more[1]
            to_v[:shared] += more[2]
        return to_q, to_k, to_v, None, None


def _forward(
    q: Tensor, k: Tensor, v: Tensor, of_q: Spans, of_k: Spans, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (n, heads, d) and log-sum-exp (heads, n) of sequences of queries, each to its sequence of keys."""
    if q.is_cuda:
        longest = max(of_q.lengths), max(of_k.lengths)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, of_q.offsets, of_k.offsets, *longest, 0.0, causal, False, scale=scale
        )
        return out, lse
    sequences = zip(_batches(q, of_q), _batches(k, of_k), _batches(v, of_k), strict=True)
    found = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*part, 0.0, causal, scale=scale)
        for part in sequences
        if part[0].numel()
    ]
    return _rows([out for out, _ in found]), torch.cat([lse[0] for _, lse in found], dim=1)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    of_q: Spans,
    of_k: Spans,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The share of these keys in the gradients of q, k and v, where `out` and `lse` are of all keys."""
    if q.is_cuda:
        longest = max(of_q.lengths), max(of_k.lengths)
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # random numbers are for dropout
        return torch.ops.aten._flash_attention_backward(
            grad, q, k, v, out, lse, of_q.offsets, of_k.offsets, *longest, 0.0, causal, unused, unused, scale=scale
        )
    of_queries = (*(_batches(x, of_q) for x in (grad, q, out)), lse.unsqueeze(0).split(of_q.lengths, dim=2))
    found = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            one_grad, one_q, one_k, one_v, one_out, one_lse, 0.0, causal, scale=scale
        )
        if one_q.numel()
        else (one_q, torch.zeros_like(one_k), torch.zeros_like(one_v))
        for one_grad, one_q, one_out, one_lse, one_k, one_v in zip(
            *of_queries, _batches(k, of_k), _batches(v, of_k), strict=True
        )
    ]
    to_q, to_k, to_v = (_rows(list(parts)) for parts in zip(*found, strict=True))
    return to_q, to_k, to_v


def _batches(x: Tensor, spans: Spans) -> tuple[Tensor, ...]:
    """(N, heads, d) → (1, heads, n, d) for each sequence."""
    return x.transpose(0, 1).unsqueeze(0).split(spans.lengths, dim=2)


def _rows(batches: list[Tensor]) -> Tensor:
    """The way back."""
    return torch.cat([batch[0].transpose(0, 1) for batch in batches])


def shared_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None = None) -> Tensor:
    """q (1, heads, N, d), k and v (1, fewer heads, N, d) → (1, N, heads, d); scale: 1 / √d unless told.

    Raises `TypeError` for float32 on a GPU, where the kernels take 16 bits.
    """
    if q.is_cuda and q.dtype not in (torch.bfloat16, torch.float16):
        raise TypeError(f"attention behind shared prompts on a GPU takes 16-bit queries, not {q.dtype}")
    layout.used = True
    if not q.is_cuda:  # there the kernel wants as many heads
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    rows = (x.squeeze(0).transpose(0, 1) for x in (q, k, v))
    return _SharedPrompts.apply(*rows, layout, scale or q.shape[-1] ** -0.5).unsqueeze(0)  # type: ignore[no-any-return]


def hidden_states(model: Any, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """The last hidden states (N, H) of a row of ids (N,) at positions (N,), with attention as `layout` says.

    model: of transformers with its SDPA attention, or of Unsloth. Raises `RuntimeError` for another attention.
    """
    attention = model.model.layers[0].self_attn
    forward = type(attention).forward
    namespace = inspect.unwrap(forward).__globals__
    options: dict[str, Any] = {KEYWORD: layout}
    # Unsloth replaces the forward of a class, and has models that it did not load keep their own
    gated = getattr(forward, "_unsloth_gated", False) and not getattr(attention, "_unsloth_fast_path", False)
    if "run_attention" in namespace and not gated:
        _teach_unsloth(namespace)
    else:
        _teach_transformers()
        options["attention_mask"] = ids.new_empty(1, 1, 1, 1)  # is given through, where otherwise (N, N) were made
    layout.used = False
    out = model.model(input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, **options)
    if not layout.used:
        raise RuntimeError(f"attention {model.config._attn_implementation!r} does not know shared prompts; use 'sdpa'")
    return out.last_hidden_state.squeeze(0)  # type: ignore[no-any-return]


def _teach_transformers() -> None:
    """Let transformers' SDPA attention read the layout, in all models; without one it does what it did."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if plain.__module__ == __name__:
        return

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        layout = options.pop(KEYWORD, None)
        if layout is None:
            return plain(module, query, key, value, mask, **options)
        return shared_attention(query, key, value, layout, options.get("scaling")), None

    ALL_ATTENTION_FUNCTIONS.register("sdpa", attend)


def _teach_unsloth(module: dict[str, Any]) -> None:
    """The same for the attention that the forward passes of one of Unsloth's modules call."""
    plain = module["run_attention"]
    if plain.__module__ == __name__:
        return

    def attend(*, config: Any, context: Any, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        if not isinstance(context.prefix_seg_info, Layout):
            return plain(config=config, context=context, Q=Q, K=K, V=V)  # type: ignore[no-any-return]
        return shared_attention(Q, K, V, context.prefix_seg_info)

    module["run_attention"] = attend
