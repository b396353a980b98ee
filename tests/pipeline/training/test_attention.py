"""Prompts that are computed once give the log-probabilities and gradients of rows that are computed apart.

The reference is plain transformers, one row of prompt and completion after another, with its own attention.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import TinyLoRAConfig, inject
from pipeline.training.attention import Layout, Spans, _teach_unsloth, hidden_states, shared_attention
from pipeline.training.logprobs import completion_log_probs
from pipeline.training.packing import packed

VOCABULARY = 90
GROUP = st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4))
GROUPS = st.lists(GROUP, min_size=1, max_size=4)  # the lengths of prompts and of their completions
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def float64_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """transformers' RMS norm, which computes in float32 whatever it is given."""
    return norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon))


@cache
def model(family: str, dtype: torch.dtype) -> Any:
    """A tiny adapted model of random weights whose `v` has its dtype."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for module in made.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = float64_norm.__get__(module)
    for parameter in made.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    bank = inject(made, TinyLoRAConfig(u=5, groups=2))
    bank.v.data = 0.2 * torch.randn_like(bank.v.data, dtype=dtype)
    made.enable_input_require_grads()
    return made.train()


def rows_of(groups: list[tuple[int, list[int]]], seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions of random tokens, the rows of all groups shuffled."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()

    rows = []
    for length, counts in groups:
        prompt = tokens(length)
        rows += [(prompt, tokens(count)) for count in counts]
    shuffled = [rows[index] for index in torch.randperm(len(rows), generator=generator).tolist()]
    return [prompt for prompt, _ in shuffled], [completion for _, completion in shuffled]


def apart(tested: Any, prompts: list[list[int]], completions: list[list[int]], width: int) -> torch.Tensor:
    """Log-probabilities (B, width) of rows that share nothing."""
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = tested(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        values = logits.log_softmax(-1).gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)
        rows.append(torch.nn.functional.pad(values, (0, width - len(completion))))
    return torch.stack(rows)


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["kept", "reentrant", "not reentrant"])
@pytest.mark.parametrize("rounding", [None, "nearest"], ids=["beside", "merged"])
@pytest.mark.parametrize(
    "family, dtype",
    [("Qwen2", torch.float64), ("Llama", torch.float64), ("Qwen3", torch.float64), ("Qwen2", torch.float32)],
)
@given(groups=GROUPS, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=6)
def test_shared_prompts_change_neither_log_probabilities_nor_the_gradient(
    family: str, dtype: torch.dtype, rounding: Any, checkpointing: bool | None, groups, seed: int
) -> None:
    tested = model(family, dtype)
    bank, tolerance = tested.tinylora, TOLERANCE[dtype]
    bank.merge_with(rounding)
    tested.gradient_checkpointing_disable()
    if checkpointing is not None:
        tested.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    prompts, completions = rows_of(groups, seed)
    width = max(map(len, completions))
    weights = torch.randn(len(prompts), width, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    bank.v.grad = None
    expected = apart(tested, prompts, completions, width)
    (expected * weights).sum().backward()
    gradient, bank.v.grad = bank.v.grad, None
    pack = packed(prompts, completions, "cpu")
    with bank.per_row(pack.owners, pack.count):
        found, _ = completion_log_probs(tested, pack, width, 1.0)
        (found * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert float((bank.v.grad - gradient).norm()) <= tolerance * (1 + float(gradient.norm()))


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The same with one mask over all tokens, by the definition of softmax. q (1, heads, N, d)."""
    owner = torch.arange(len(layout.segments.lengths)).repeat_interleave(torch.tensor(layout.segments.lengths))
    place = torch.arange(len(owner))
    allowed = (owner.unsqueeze(1) == owner) & (place.unsqueeze(1) >= place)
    start, first = 0, len(owner) - layout.behind.tokens
    for length, behind in zip(layout.prompts.lengths, layout.behind.lengths, strict=True):
        allowed[first : first + behind, start : start + length] = True
        start, first = start + length, first + behind
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed.to(q.device), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@given(
    groups=st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(0, 5), min_size=1, max_size=3)), max_size=3),
    alone=st.lists(st.integers(1, 6), max_size=3),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
)
@settings(deadline=None)
def test_two_parts_merged_are_the_attention_of_one_mask(groups, alone: list[int], heads: tuple[int, int]) -> None:
    if not groups and not alone:
        return
    prompts = [length for length, _ in groups]
    segments = prompts + alone + [length for _, lengths in groups for length in lengths]
    behind = [sum(lengths) for _, lengths in groups]
    layout = Layout(Spans.of(segments, "cpu"), Spans.of(prompts, "cpu"), Spans.of(behind, "cpu"))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, count, sum(segments), 8, dtype=torch.float64, generator=generator, requires_grad=True)
        for count in (heads[0], heads[1], heads[1])
    )
    found, expected = shared_attention(q, k, v, layout), dense(q, k, v, layout)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    target = torch.randn(found.shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad((out * target).sum(), (q, k, v)) for out in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_an_attention_that_does_not_read_the_layout_is_refused() -> None:
    tested = model("Qwen2", torch.float32)
    pack = packed([[1, 2], [1, 2]], [[3, 4], [5]], "cpu")
    tested.set_attn_implementation("eager")
    with pytest.raises(RuntimeError, match="'eager' does not know shared prompts"):
        hidden_states(tested, pack.ids, pack.positions, pack.layout)
    tested.set_attn_implementation("sdpa")


def test_other_passes_of_the_model_are_as_before() -> None:
    """The attention that was taught to read layouts still reads masks."""
    tested = model("Llama", torch.float32)
    ids = torch.tensor([[1, 2, 3, 4]])
    plain = tested(ids).logits
    pack = packed([[1, 2], [1, 2]], [[3, 4], [5]], "cpu")
    hidden_states(tested, pack.ids, pack.positions, pack.layout)
    assert torch.equal(tested(ids).logits, plain)
    mask, positions = torch.tensor([[0, 0, 1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 1, 2, 3]])
    padded = torch.nn.functional.pad(ids, (2, 0))
    found = tested(padded, attention_mask=mask, position_ids=positions).logits[:, 2:]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_the_attention_of_unsloths_forward_passes_is_taught_once() -> None:
    """Those need a GPU (`tests/gpu/test_shared_prompts.py`); here a function with their arguments stands for theirs."""

    def run_attention(*, config: Any, context: Any, Q: Any, K: Any, V: Any) -> str:
        return "its own"

    namespace: dict[str, Any] = {"run_attention": run_attention}
    _teach_unsloth(namespace)
    taught = namespace["run_attention"]
    _teach_unsloth(namespace)
    assert namespace["run_attention"] is taught
    layout = Layout(Spans.of([3, 2, 2], "cpu"), Spans.of([3], "cpu"), Spans.of([4], "cpu"))
    q, k, v = (torch.randn(1, heads, 7, 8) for heads in (4, 2, 2))
    found = taught(config=None, context=SimpleNamespace(prefix_seg_info=layout), Q=q, K=k, V=v)
    torch.testing.assert_close(found, dense(q, k, v, layout))
    assert taught(config=None, context=SimpleNamespace(prefix_seg_info=None), Q=q, K=k, V=v) == "its own"
