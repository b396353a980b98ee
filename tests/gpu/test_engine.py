"""The engine on a GPU: what a seed fixes, and that the short way through decoding steps changes no token."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.config import RunConfig, resolved
from pipeline.models import choose_model
from pipeline.policy import Policy
from pipeline.rollout import Sampling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
PROMPTS = [list(range(20, 80)), list(range(90, 120)), list(range(7, 200))]


@pytest.fixture(scope="module")
def policy() -> Iterator[Policy]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from pipeline.policy import load_policy

    config = resolved(RunConfig(vllm=True, dataset="starter", gpu_memory=12), starter=True, gpu=True)
    policy = load_policy(choose_model("starter"), config)
    policy.engine.refresh(0.01 * torch.ones_like(policy.model.tinylora.v))
    yield policy
    policy.close()
    torch.cuda.set_per_process_memory_fraction(1.0)


def sampled(policy: Policy, seed: int) -> list[list[int]]:
    rows = [prompt for prompt in PROMPTS for _ in range(4)]
    return [c.token_ids for c in policy.engine.generate(rows, Sampling(48, seed=seed), lambda row, completion: None)]


def test_a_seed_fixes_the_completions_and_samples_of_a_group_differ(policy: Policy) -> None:
    first = sampled(policy, 1)
    assert sampled(policy, 1) == first
    assert sampled(policy, 2) != first
    assert all(len({tuple(ids) for ids in first[start : start + 4]}) > 1 for start in range(0, len(first), 4))


def test_the_short_way_changes_no_token(policy: Policy) -> None:
    scheduler = policy.engine._scheduler  # type: ignore[attr-defined]
    short = sampled(policy, 3)
    assert scheduler._possible
    scheduler._possible = False
    assert sampled(policy, 3) == short
    scheduler._possible = True


def test_log_probs_are_those_of_the_trained_model(policy: Policy) -> None:
    with torch.no_grad():
        policy.model.tinylora.v.fill_(0.01)
    policy.engine.refresh(policy.model.tinylora.v.detach())
    (completion,) = policy.engine.generate(PROMPTS[:1], Sampling(48), lambda row, completion: None)
    ids = torch.tensor([PROMPTS[0] + completion.token_ids], device="cuda")
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0, len(PROMPTS[0]) - 1 : -1].float()
    own = logits.log_softmax(-1).gather(1, ids[0, len(PROMPTS[0]) :, None])[:, 0]
    assert own.tolist() == pytest.approx(completion.log_probs, abs=0.1)
