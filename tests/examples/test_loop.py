"""`examples/loop.py`: its mathematics against computations made apart, and two real steps of the starter."""

from __future__ import annotations

import math
import statistics
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from data.starter.generator import problems
from examples import loop
from pipeline.tasks.code import TASK as CODE
from rewards.problem import Problem


def in_float64(model):
    """The model with every number in float64, also within its norms, which round to float32 by themselves."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "Qwen2RMSNorm":
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model.double().eval()


@pytest.fixture
def model(tiny_model_folder: Path):
    """Two layers in float64, `v` of 6 scalars away from zero."""
    model = in_float64(AutoModelForCausalLM.from_pretrained(tiny_model_folder))
    v = loop.adapt(model, u=6)
    v.data = torch.linspace(-0.02, 0.03, 6)
    return model.double()


def layers(model) -> dict[str, loop.TinyLoRALinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, loop.TinyLoRALinear)}


def test_every_block_layer_is_adapted_by_its_two_largest_singular_pairs(model) -> None:
    found = layers(model)
    assert len(found) == 2 * 7
    for layer in found.values():
        expected = torch.linalg.svdvals(layer.linear.weight)
        left_over = torch.linalg.svdvals(layer.linear.weight - layer.left @ layer.right)
        torch.testing.assert_close(left_over[: len(expected) - 2], expected[2:])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert [parameter.shape for parameter in trainable] == [(6,)]


def objective(model, v: Tensor, rows: list[tuple[list[int], list[int]]], advantages: Tensor) -> float:
    """Σ A log π / tokens, row by row without padding, of a plain model with the weights W + U Σ (Σ v_i P_i) Vᵀ."""
    state = {name.replace(".linear.", "."): tensor for name, tensor in model.state_dict().items()}
    for name, layer in layers(model).items():
        mixing = sum(scalar * p for scalar, p in zip(v, layer.p, strict=True))
        state[f"{name}.weight"] = layer.linear.weight + layer.left @ mixing @ layer.right
    plain = in_float64(type(model)(model.config))
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    total = 0.0
    with torch.no_grad():
        for (prompt, completion), advantage in zip(rows, advantages, strict=True):
            log_pi = plain(torch.tensor([prompt + completion])).logits[0].log_softmax(dim=-1)
            total += float(advantage) * sum(
                float(log_pi[len(prompt) + i - 1, token]) for i, token in enumerate(completion)
            )
    return total / sum(len(completion) for _, completion in rows)


def test_the_gradient_is_that_of_finite_differences_without_padding(model) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [(5, 7), (9, 2), (7, 4)]
    rows = [tuple(torch.randint(5, 250, (n,), generator=generator).tolist() for n in pair) for pair in lengths]
    advantages = torch.tensor([0.7, 0.0, -1.3], dtype=torch.float64)
    longest_prompt, longest = 9, 7
    ids = torch.zeros(3, longest_prompt + longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, (prompt, completion) in enumerate(rows):
        place = slice(longest_prompt - len(prompt), longest_prompt + len(completion))
        ids[i, place], mask[i, place] = torch.tensor(prompt + completion), 1
    batch = loop.Rollouts(ids, mask, mask[:, longest_prompt:], [])

    loop.policy_gradient(model, batch, advantages)

    v = next(iter(layers(model).values())).v
    assert v.grad is not None
    for i in range(len(v)):
        step = torch.zeros_like(v.data)
        step[i] = 1e-5
        above, below = (objective(model, v.data + sign * step, rows, advantages) for sign in (1, -1))
        assert -float(v.grad[i]) == pytest.approx((above - below) / 2e-5, rel=1e-5, abs=1e-9)


GROUPS = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0, math.nan]), min_size=size, max_size=size), min_size=1, max_size=4
    )
)


@settings(deadline=None)
@given(GROUPS)
def test_advantages_compare_within_the_group(groups: list[list[float]]) -> None:
    found = loop.advantages_of(torch.tensor(groups, dtype=torch.float64))
    for rewards, advantages in zip(groups, found.tolist(), strict=True):
        known = [reward for reward in rewards if not math.isnan(reward)]
        for reward, advantage in zip(rewards, advantages, strict=True):
            expected = 0.0
            if not math.isnan(reward):
                expected = (reward - statistics.fmean(known)) / (statistics.pstdev(known) + 1e-4)
            assert advantage == pytest.approx(expected, abs=1e-9)


def test_a_group_of_equal_rewards_has_no_advantage() -> None:
    for size in range(2, 17):
        equal = torch.linspace(0, 1, 101).unsqueeze(1).expand(-1, size)
        unjudged = equal.index_fill(1, torch.tensor(0), math.nan)
        assert not loop.advantages_of(equal).any() and not loop.advantages_of(unjudged).any()


def test_problems_are_asked_as_the_trainer_asks_them() -> None:
    for problem in problems("train", 20, seed=3):
        assert loop.messages(problem) == CODE.prompt.messages(problem)


def plain_reward(text: str, problem: Problem, folder: Path) -> float:
    """0 without a program that compiles, else half and half of the tests passed: by g++ alone, without the graders."""
    source, program = folder / "main.cpp", folder / "program"
    source.write_text(text.partition("```cpp\n")[2].partition("```")[0])
    if subprocess.run(["g++", "-O2", "-std=c++17", "-o", program, source], capture_output=True, check=False).returncode:
        return 0.0
    passed = 0
    for test in problem.tests:
        try:
            done = subprocess.run([program], input=test.input, capture_output=True, text=True, timeout=5, check=False)
        except subprocess.TimeoutExpired:
            continue
        passed += done.returncode == 0 and done.stdout.split() == test.output.split()
    return 0.5 + 0.5 * passed / len(problem.tests)


def test_two_steps_move_v_by_rewards_of_real_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graded: list[tuple[Problem, str, float | None]] = []
    batches: list[loop.Rollouts] = []

    class Watched(loop.CodeReward):
        def __call__(self, prompts, completions, **columns):  # type: ignore[no-untyped-def, override]
            rewards = super().__call__(prompts, completions, **columns)
            graded.extend(zip(columns["problem"], completions, rewards, strict=True))
            return rewards

    def watched_rollout(*arguments, **options) -> loop.Rollouts:  # type: ignore[no-untyped-def]
        batches.append(rollout(*arguments, **options))
        return batches[-1]

    rollout = loop.rollout
    monkeypatch.setattr(loop, "CodeReward", Watched)
    monkeypatch.setattr(loop, "rollout", watched_rollout)
    v = loop.train(steps=2, prompts=2, group=4, held_out=2)

    assert v.shape == (32,) and bool((v != 0).all())
    printed = capsys.readouterr().out
    assert printed.count("pass rate") == 2 and "gain, paired by problem" in printed
    assert [len(batch.texts) for batch in batches] == [2, 8, 8, 2]  # held out, two steps, held out
    for problem, text, reward in graded[2:8]:
        assert reward == pytest.approx(plain_reward(text, problem, tmp_path))
    assert len({reward for _, _, reward in graded}) > 1
    for batch in batches:
        for ids, mask in zip(batch.ids[:, -batch.completion_mask.shape[1] :], batch.completion_mask, strict=True):
            drawn = ids[: int(mask.sum())].tolist()
            ends = [place for place, token in enumerate(drawn) if token == 2]  # <|im_end|>
            assert ends == [len(drawn) - 1] or (not ends and len(drawn) == loop.LONGEST)
