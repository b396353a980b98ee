"""Which steps the sampler takes from vLLM's: those in which tokens are drawn, and nothing else is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.integration

VOCABULARY, RECORDS = 50, 7
SLOTS = np.array([5, 2, 0], dtype=np.int32)  # of the requests of the step, among all records


class Record:
    """As vLLM's tensor on both sides: `np` is written, `gpu` is read."""

    def __init__(self, value: float, kind: Any) -> None:
        self.np = np.full(RECORDS, value, kind)
        self.gpu = torch.from_numpy(self.np)


@pytest.fixture
def sampler() -> Any:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    from pipeline.rollout.vllm.sampler import OnePassSampler

    states = SimpleNamespace(
        vocab_size=VOCABULARY,
        temperature=Record(0.7, np.float32),
        seeds=Record(3, np.int64),
        top_k=Record(VOCABULARY, np.int32),
        top_p=Record(1, np.float32),
        min_p=Record(0, np.float32),
        num_logprobs=np.zeros(RECORDS, np.int32),
    )
    states.max_num_logprobs = lambda slots: states.num_logprobs[slots].max()
    of_ids = Record(0, np.int32)
    own = object.__new__(Sampler)
    vars(own).update(
        sampling_states=states,
        logprob_token_ids_state=SimpleNamespace(of_ids=of_ids, max_num_token_ids=lambda slots: of_ids.np[slots].max()),
        penalties_state=SimpleNamespace(use_penalty=np.zeros(RECORDS, bool)),
        logit_bias_state=SimpleNamespace(use_logit_bias=np.zeros(RECORDS, bool)),
        bad_words_state=SimpleNamespace(num_bad_words=Record(0, np.int32)),
        logprobs_mode="processed_logprobs",
        compute_nans=False,
        use_fp64_gumbel=False,
    )
    return OnePassSampler(own)


@pytest.mark.parametrize(
    "record, value",
    [
        ("sampling_states.top_k.np", 5),
        ("sampling_states.top_p.np", 0.9),
        ("sampling_states.min_p.np", 0.1),
        ("sampling_states.num_logprobs", 2),
        ("logprob_token_ids_state.of_ids.np", 1),
        ("penalties_state.use_penalty", True),
        ("logit_bias_state.use_logit_bias", True),
        ("bad_words_state.num_bad_words.np", 1),
    ],
)
def test_one_request_that_asks_for_more_leaves_the_step_to_vllm(sampler: Any, record: str, value: Any) -> None:
    logits = torch.zeros(3, VOCABULARY)
    assert sampler._only_draws(logits, SLOTS)
    values = sampler
    for name in record.split("."):
        values = getattr(values, name)
    values[1] = value  # a record of no request in this step
    assert sampler._only_draws(logits, SLOTS)
    values[2] = value
    assert not sampler._only_draws(logits, SLOTS)


def test_so_does_what_holds_for_all_requests(sampler: Any) -> None:
    logits = torch.zeros(3, VOCABULARY)
    assert not sampler._only_draws(torch.zeros(4, VOCABULARY), SLOTS)  # one request has a second, speculative token
    assert not sampler._only_draws(logits.bfloat16(), SLOTS)
    for name, value in (("logprobs_mode", "raw_logprobs"), ("compute_nans", True), ("use_fp64_gumbel", True)):
        kept = getattr(sampler, name)
        setattr(sampler, name, value)
        assert not sampler._only_draws(logits, SLOTS)
        setattr(sampler, name, kept)
    sampler.sampling_states.num_logprobs[:] = -1  # nobody wants any
    assert not sampler._only_draws(logits, SLOTS)


def test_every_request_gets_the_token_of_its_own_record(sampler: Any, monkeypatch) -> None:
    from pipeline.rollout.drawing import draw
    from pipeline.rollout.vllm import sampler as module

    states, batch = sampler.sampling_states, SimpleNamespace(
        idx_mapping_np=SLOTS,
        expanded_idx_mapping=torch.from_numpy(SLOTS),
        positions=torch.arange(10) * 11,
        logits_indices=torch.tensor([1, 4, 9]),
        num_reqs=3,
        seq_lens=torch.ones(3, dtype=torch.int32),
        cu_num_logits=None,
        idx_mapping=None,
    )  # fmt: skip
    states.temperature.np[SLOTS] = [1.0, 0.0, 0.5]
    states.seeds.np[SLOTS] = [9, 8, 2**40]
    sampler.req_states = SimpleNamespace(prefill_len=SimpleNamespace(gpu=None))
    monkeypatch.setattr(module, "get_num_sampled_and_rejected", lambda ones, *_: (ones, 0 * ones))
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0))
    output = sampler(logits, batch)
    every = torch.arange(3)
    tokens, log_probs = draw(
        logits, torch.tensor([1.0, 0.0, 0.5]), torch.tensor([9, 8, 2**40]), every, torch.tensor([11, 44, 99]), every
    )
    assert torch.equal(output.sampled_token_ids, tokens[:, None])
    assert torch.equal(output.logprobs_tensors.logprob_token_ids, tokens[:, None])
    assert torch.equal(output.logprobs_tensors.logprobs, log_probs[:, None])
    assert output.logprobs_tensors.selected_token_ranks.tolist() == [0, 0, 0]
    assert output.num_sampled.tolist() == [1, 1, 1] and output.num_rejected.tolist() == [0, 0, 0]
