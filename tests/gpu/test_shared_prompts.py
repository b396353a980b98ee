"""On the GPU, in bf16: attention in two parts is that of one mask, and shared prompts give what separate rows give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training.attention import Layout, Spans, shared_attention
from pipeline.training.logprobs import completion_log_probs
from pipeline.training.packing import packed
from tests.pipeline.training.test_attention import dense

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("heads", [(4, 4), (16, 2)])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(
    "prompts, alone, completions",
    [
        ([50, 323, 7], [], [[20, 1, 0, 140], [190] * 8, [0, 0]]),  # the last has keys that nothing attends to
        ([], [40, 300, 1], []),
        ([130], [77, 1], [[65, 64, 63, 129]]),
    ],
)
def test_flash_in_two_parts_is_the_attention_of_one_mask(prompts, alone, completions, width: int, heads) -> None:
    """Values and all three gradients against one mask in float64, as close as one flash kernel is."""
    segments = prompts + alone + [length for lengths in completions for length in lengths]
    behind = [sum(lengths) for lengths in completions]
    layout = Layout(Spans.of(segments, "cuda"), Spans.of(prompts, "cuda"), Spans.of(behind, "cuda"))
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [
        torch.randn(1, count, sum(segments), width, device="cuda", generator=generator).bfloat16()
        for count in (heads[0], heads[1], heads[1])
    ]
    target = torch.randn(1, sum(segments), heads[0], width, device="cuda", generator=generator).bfloat16()

    def outcome(attention: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        out = attention(*leaves, layout)
        return [out.detach(), *torch.autograd.grad((out * target.to(dtype)).sum(), leaves)]

    found, expected = outcome(shared_attention, torch.bfloat16), outcome(dense, torch.float64)
    for one, exact in zip(found, expected, strict=True):
        assert float((one.double() - exact).norm() / exact.norm()) < 0.01


def passes(model: Any, device: str = "cuda") -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Log-probabilities and gradient of v: of shared prompts, of separate rows, and of separate rows one by one."""
    generator = torch.Generator().manual_seed(1)
    asked = [torch.randint(5, 300, (length,), generator=generator).tolist() for length in (90, 33, 200)]
    prompts = [prompt for prompt in asked for _ in range(4)]
    lengths = torch.randint(1, 60, (len(prompts),), generator=generator).tolist()
    completions = [torch.randint(5, 300, (length,), generator=generator).tolist() for length in lengths]
    weights = torch.randn(len(prompts), 60, generator=generator).to(device)
    bank = model.tinylora

    def computed(parts: list[slice], shared: bool) -> tuple[torch.Tensor, torch.Tensor]:
        bank.v.grad = None
        found = []
        for part in parts:
            rows = None if shared else range(len(prompts[part]))
            pack = packed(prompts[part], completions[part], device, sharing=rows)
            with bank.per_row(pack.owners, pack.count):
                values, _ = completion_log_probs(model, pack, 60, 1.0)
                (values * weights[part]).sum().backward()
            found.append(values.detach())
        return torch.cat(found).cpu(), bank.v.grad.cpu()

    every = slice(0, len(prompts))
    alone = [slice(row, row + 1) for row in range(len(prompts))]
    return computed([every], True), computed([every], False), computed(alone, False)


def check(model: Any) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """As `passes`, compared. Sharing moves log-probabilities and gradient by a few roundings to bf16, of 0.4 % each.
    Rows with a prompt each do not move at all with the batch that they are computed in: the kernels take sequence by
    sequence."""
    shared, separate, alone = passes(model)
    for one, other, third in zip(shared, separate, alone, strict=True):
        assert float((other - third).norm() / third.norm()) <= 1e-3
        assert float((one - third).norm() / third.norm()) <= 0.05
    return shared, separate, alone


def through_transformers(folder: Path, device: str, dtype: torch.dtype, rounding: Any, checkpointing: bool) -> Any:
    """The tiny model with one update, whatever its type and its device."""
    from transformers import AutoModelForCausalLM

    from adapters import TinyLoRAConfig, inject
    from pipeline.rollout.residual import keep_residual
    from pipeline.rollout.swiglu import keep_swiglu

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device, dtype)
    bank = inject(model, TinyLoRAConfig(u=8))
    bank.v.data.copy_(0.1 * torch.randn(bank.v.shape, generator=torch.Generator().manual_seed(0)))
    bank.merge_with(rounding)
    keep_residual(model)
    keep_swiglu(model)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    return model


def compare_through_transformers(folder: str) -> None:
    """With and without checkpointing, merged and beside; beside also against float32, to which the gradient of shared
    prompts is as near as that of separate rows."""
    *_, exact = passes(through_transformers(Path(folder), "cpu", torch.float32, None, False), "cpu")
    for checkpointing in (False, True):
        check(through_transformers(Path(folder), "cuda", torch.bfloat16, "stochastic", checkpointing))
        shared, separate, _ = check(through_transformers(Path(folder), "cuda", torch.bfloat16, None, checkpointing))
        for one, other, reference in zip(shared, separate, exact, strict=True):
            errors = [float((x.float() - reference).norm() / reference.norm()) for x in (one, other)]
            assert errors[0] <= 2 * errors[1], errors


def test_shared_prompts_through_transformers(tiny_model_folder: Path) -> None:
    """In a process of its own: Unsloth, once imported, has replaced the forward passes of transformers' classes."""
    told = f"from tests.gpu.test_shared_prompts import *; compare_through_transformers({str(tiny_model_folder)!r})"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", told], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_prompts_through_unsloth(checkpointing: bool) -> None:
    """The starter in NF4 as a run loads it, in a row longer than its longest sequence."""
    from pipeline.config import Settings, resolved
    from pipeline.policy.models import choose_model, load_model, made_ready
    from pipeline.rollout.residual import keep_residual
    from pipeline.rollout.swiglu import keep_swiglu

    config = resolved(Settings(dataset="starter", max_prompt_length=208), starter=True, gpu=True)
    model, _ = load_model(made_ready(choose_model("starter")), config)
    assert type(model.model.layers[0].self_attn).forward.__module__.startswith("unsloth.")
    torch.nn.init.normal_(model.tinylora.v, std=0.03)
    model.tinylora.v.data = model.tinylora.v.data.float()
    model.tinylora.merge_with("stochastic")
    keep_residual(model)
    keep_swiglu(model)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    check(model)
