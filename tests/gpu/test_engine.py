"""The engine on a GPU: what a seed fixes, that neither the short way through decoding steps nor the sampler changes a
token, and that it samples from the trained model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from adapters.base import dense, float32_product
from adapters.merge import delta_weight
from pipeline.config import Settings, resolved
from pipeline.policy.loading import Policy
from pipeline.policy.models import choose_model
from pipeline.rollout import Completion, Sampling
from pipeline.rollout.sampling_support import WHOLE, Truncation

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
PROMPTS = [list(range(20, 80)), list(range(90, 120)), list(range(7, 200))]


WAYS: dict[str, dict[str, Any]] = {
    "merge": {},
    "float16": {"dtype": "float16"},
    "lowrank": {"refresh": "lowrank"},
    "packed": {"engine_weights": "nf4"},
    "packed-lowrank": {"engine_weights": "nf4", "refresh": "lowrank"},
}


@pytest.fixture(scope="module", params=list(WAYS.values()), ids=list(WAYS))
def policy(request) -> Iterator[Policy]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from pipeline.policy.loading import load_policy

    settings = Settings(vllm=True, dataset="starter", gpu_memory=12, **request.param)
    policy = load_policy(choose_model("starter"), resolved(settings, starter=True, gpu=True))
    serve(policy, 0)
    yield policy
    policy.close()
    torch.cuda.set_per_process_memory_fraction(1.0)


def scheduler_of(policy: Policy) -> Any:
    return policy.engine.llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]


def serve(policy: Policy, seed: int) -> None:
    """Make a random vector the policy of trainer and engine, and forget cached prefixes."""
    v = policy.model.tinylora.v
    with torch.no_grad():
        v.normal_(std=0.03, generator=torch.Generator(v.device).manual_seed(seed))
    policy.engine.refresh(v.detach())


def sampled(policy: Policy, seed: int) -> list[list[int]]:
    rows = [prompt for prompt in PROMPTS for _ in range(4)]
    return [c.token_ids for c in policy.engine.generate(rows, Sampling(48, seed=seed), lambda row, completion: None)]


def test_a_seed_fixes_the_completions_and_samples_of_a_group_differ(policy: Policy) -> None:
    serve(policy, 1)
    first = sampled(policy, 1)
    serve(policy, 1)
    assert sampled(policy, 1) == first
    serve(policy, 1)
    assert sampled(policy, 2) != first
    assert all(len({tuple(ids) for ids in first[start : start + 4]}) > 1 for start in range(0, len(first), 4))


def test_the_short_way_changes_no_token(policy: Policy) -> None:
    scheduler = scheduler_of(policy)
    assert scheduler._possible
    serve(policy, 2)
    short = sampled(policy, 3)
    serve(policy, 2)
    scheduler._possible = False
    assert sampled(policy, 3) == short
    scheduler._possible = True


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_tokens_are_drawn_in_one_pass_over_the_logits(policy: Policy, temperature: float, monkeypatch) -> None:
    """Unless a step asks for more. A seed gives the same tokens again; greedily they are those of vLLM's own sampler,
    with the same log-probabilities up to rounding in float32."""
    from pipeline.rollout.vllm import sampler

    calls: list[int] = []

    def counted(logits: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(logits))
        return draw(logits, *others)

    def completions(truncation: Truncation = WHOLE) -> list[Completion]:
        serve(policy, 3)
        rows = [prompt for prompt in PROMPTS for _ in range(4)]
        return policy.engine.generate(rows, Sampling(48, temperature, 4, truncation), lambda row, completion: None)

    draw = sampler.draw
    monkeypatch.setattr(sampler, "draw", counted)
    ours = completions()
    assert len(calls) >= max(len(completion.token_ids) for completion in ours)
    calls.clear()
    if temperature:
        completions(Truncation(top_k=5))
        completions(Truncation(top_p=0.9))
        assert not calls
        again = completions()
    else:
        monkeypatch.setattr(sampler.OnePassSampler, "_only_draws", lambda *_: False)
        again = completions()
        assert not calls
    for one, other in zip(ours, again, strict=True):
        assert one.token_ids == other.token_ids
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seats", [None, 5])
def test_log_probs_are_those_of_the_trained_model(policy: Policy, seats: int | None, monkeypatch) -> None:
    """After every refresh, for prompts that are read at once and for those that wait for a seat."""
    scheduler = scheduler_of(policy)
    if seats:
        monkeypatch.setattr(scheduler, "max_num_running_reqs", seats)
        monkeypatch.setattr(scheduler, "_crowd", 2)
    rows = [prompt for prompt in PROMPTS for _ in range(4)]
    for seed in range(3):
        serve(policy, seed)
        check_log_probs(policy, rows, seed)


def check_log_probs(policy: Policy, rows: list[list[int]], seed: int) -> None:
    completions = policy.engine.generate(rows, Sampling(48, seed=seed), lambda row, completion: None)
    for prompt, completion in zip(rows, completions, strict=True):
        own = trained(policy, prompt, completion.token_ids)
        distances = [abs(a - b) for a, b in zip(own, completion.log_probs, strict=True)]
        assert max(distances) < 1 and sum(distances) / len(distances) < 0.1


@pytest.mark.parametrize("copies", [3, 170])
def test_prompts_that_fill_their_blocks_are_read_once(policy: Policy, copies: int) -> None:
    """Their other completions compute the last token alone, also when nothing else is left to compute; and have the
    log-probabilities of the trained model."""
    serve(policy, 6)
    prompts = [list(range(20, 84)), list(range(7, 23))]
    for seed in range(2):  # the second finds all prompts in the cache
        check_log_probs(policy, [prompt for prompt in prompts for _ in range(copies)], seed)


def test_many_sequences_read_a_prompt_once(policy: Policy, monkeypatch) -> None:
    """With the log-probabilities of the trained model, also while sequences end and groups become smaller."""
    from adapters.kernels.attention import SharedPrompts
    from pipeline.rollout.vllm.attention import FEWEST

    found: list[int] = []
    find = SharedPrompts.find

    def counted(prompts: SharedPrompts, tables: torch.Tensor, lengths: torch.Tensor) -> None:
        find(prompts, tables, lengths)
        found.append(int((prompts.shared[: len(lengths)] > 0).sum()))

    monkeypatch.setattr(SharedPrompts, "find", counted)
    serve(policy, 4)
    check_log_probs(policy, [prompt for prompt in PROMPTS for _ in range(FEWEST // 2)], 4)
    assert len(found) > 8 and max(found) > FEWEST


def test_an_engine_without_weights_holds_the_bits_of_one_with(policy: Policy) -> None:
    """Of every matrix, at two vectors, from the packed codes; and the embedding is the trainer's own tensor."""
    theirs = policy.engine.worker.get_model()  # type: ignore[attr-defined]
    assert theirs.model.embed_tokens.weight.data_ptr() == policy.model.get_input_embeddings().weight.data_ptr()
    if policy.model.tinylora.merger is None:
        return
    bank = policy.model.tinylora
    for seed in range(2):
        serve(policy, seed)
        bank.served.drop()
        for index in range(len(bank.layers)):
            served = policy.engine.worker._tinylora_served(index)  # type: ignore[attr-defined]
            assert torch.equal(served.view(torch.int16), bank.merged_weight(index).view(torch.int16))


def test_completions_that_are_preempted_go_on_as_they_were(policy: Policy, monkeypatch) -> None:
    """With blocks for a few sequences, of which all are let in, every one ends with its length and the trained model's
    log-probabilities."""
    scheduler = scheduler_of(policy)
    pool = scheduler.kv_cache_manager.block_pool
    serve(policy, 4)
    rows = [prompt for prompt in PROMPTS for _ in range(8)]
    monkeypatch.setattr(scheduler, "_room", lambda: len(rows))
    kept = pool.get_new_blocks(pool.get_num_free_blocks() - 60)
    before = policy.engine.preemptions  # type: ignore[attr-defined]
    try:
        completions = policy.engine.generate(rows, Sampling(128, seed=5), lambda row, completion: None)
    finally:
        pool.free_blocks(kept)
    assert policy.engine.preemptions > before  # type: ignore[attr-defined]
    for prompt, completion in zip(rows, completions, strict=True):
        assert len(completion.token_ids) == len(completion.log_probs)
        ended = completion.token_ids[-1] in policy.engine._eos_token_ids  # type: ignore[attr-defined]
        assert ended or len(completion.token_ids) == 128
        own = trained(policy, prompt, completion.token_ids)
        distances = [abs(a - b) for a, b in zip(own, completion.log_probs, strict=True)]
        assert sum(distances) / len(distances) < 0.1


@pytest.mark.parametrize("rows", [1, 9, 16, 17, 64, 65, 300])
def test_products_from_packed_codes_are_those_of_the_dense_matrix(policy: Policy, rows: int) -> None:
    """Few rows with the exact update, more with the matrix that is made in the scratch, against float64."""
    packed = policy.engine.worker.tinylora_packed  # type: ignore[attr-defined]
    if packed is None:
        pytest.skip("this engine has weights of its own")
    serve(policy, 0)
    bank = policy.model.tinylora
    mixings = bank.mixings_of(bank.v.detach())
    generator = torch.Generator("cuda").manual_seed(0)
    for name in list(packed.parts)[:4]:
        parts = packed.parts[name]
        x = torch.randn(rows, packed.whole[name].shape[1], device="cuda", generator=generator).bfloat16()
        assert packed.are_few(x) == (rows <= 64)
        if packed.are_few(x):
            updates = [delta_weight(bank.layers[i].left, mixings[i], bank.layers[i].right) for i in parts]
            weight = torch.cat([dense(bank.bases()[i]) + update for i, update in zip(parts, updates, strict=True)])
            found, bound = packed.with_update(name, x, None, wide=True), 1e-5
        else:
            weight = torch.cat([packed.one(i).clone() for i in parts])
            found, bound = float32_product(x, packed.matrix(name)), 1e-3
        expected = x.double() @ weight.double().T
        assert (found - expected).norm() < bound * expected.norm()


def trained(policy: Policy, prompt: list[int], sampled: list[int]) -> list[float]:
    """Log-probabilities of the sampled tokens under the trained model."""
    ids = torch.tensor([prompt + sampled], device="cuda")
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
