"""The short way through decoding steps against vLLM's own scheduler: the same work for the GPU, the same tokens."""

from __future__ import annotations

import importlib.util
import random
from collections import deque
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
STARTER = Path(__file__).resolve().parents[3] / "data" / "starter" / "model"
BLOCK = 4
END = 7


def make(kind: type, blocks: int, sequences: int, length: int = 64, tokens: int = 32) -> Any:
    """A scheduler as it is with the model runner of GPUs."""
    import torch
    from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = VllmConfig(
        model_config=ModelConfig(str(STARTER), dtype="float32", max_model_len=length),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True),
        scheduler_config=SchedulerConfig(
            max_num_seqs=sequences, max_num_batched_tokens=tokens, max_model_len=length, is_encoder_decoder=False
        ),
    )
    config.scheduler_config.async_scheduling = True
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    config.cache_config.num_gpu_blocks = blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VllmConfig, "use_v2_model_runner", True)
        return kind(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
        )


def request(name: str, prompt: list[int], limit: int) -> Any:
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(max_tokens=limit, logprobs=0, stop_token_ids=[END]),
        pooling_params=None,
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )


def sampled(name: str, position: int) -> tuple[int, float, int]:
    """What a model draws as the token of a sequence at a position: token, log-probability, rank."""
    rng = random.Random(f"{name}/{position}")
    return rng.randrange(END - 1, 60), np.float32(-rng.random()).item(), rng.randrange(9)


def answer(scheduler: Any, step: Any) -> Any:
    """The model runner's result for a step: a token where the scheduled tokens reach the sequence's end."""
    from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

    names, drawn, tokens = list(step.num_scheduled_tokens), [], []
    starts = dict(zip(step.scheduled_cached_reqs.req_ids, step.scheduled_cached_reqs.num_computed_tokens, strict=True))
    starts |= {new.req_id: new.num_computed_tokens for new in step.scheduled_new_reqs}
    for name in names:
        position = starts[name] + step.num_scheduled_tokens[name]
        known = scheduler.requests[name].num_tokens if name in scheduler.requests else 0
        drawn.append(sampled(name, position))
        tokens.append([drawn[-1][0]] if position >= known else [])
    logprobs = LogprobsLists(
        np.array([[token] for token, _, _ in drawn]),
        np.array([[log_prob] for _, log_prob, _ in drawn], dtype=np.float32),
        np.array([rank for _, _, rank in drawn]),
    )
    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=tokens,
        logprobs=logprobs if names else None,
        prompt_logprobs_dict={},
    )


class Cache:
    """What the GPU would hold: each place of a block has the sequence up to the token whose key was written there."""

    def __init__(self, prompts: dict[str, list[int]]) -> None:
        self.prompts = prompts
        self.held: dict[tuple[int, int], tuple[int, ...]] = {}
        self.tables: dict[str, list[int]] = {}

    def follow(self, step: Any) -> None:
        """Write what a step computes. Every sequence must find what it attends to where its table says."""
        cached = step.scheduled_cached_reqs
        starts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for name, new in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if new is not None:
                self.tables[name] = ([] if name in cached.resumed_req_ids else self.tables[name]) + new[0]
        for new in step.scheduled_new_reqs:
            self.tables[new.req_id], starts[new.req_id] = list(new.block_ids[0]), new.num_computed_tokens
        sequences = {}
        for name, count in step.num_scheduled_tokens.items():
            sequence = list(self.prompts[name])
            while len(sequence) < starts[name] + count:
                sequence.append(sampled(name, len(sequence))[0])
            sequences[name] = sequence
            for position in range(starts[name], starts[name] + count):
                self.held[self.place(name, position)] = tuple(sequence[: position + 1])
        for name, sequence in sequences.items():
            for position in range(starts[name] + step.num_scheduled_tokens[name]):
                assert self.held[self.place(name, position)] == tuple(sequence[: position + 1]), (name, position)

    def place(self, name: str, position: int) -> tuple[int, int]:
        return self.tables[name][position // BLOCK], position % BLOCK


def plain(value: Any) -> Any:
    """A scheduler's output as nested tuples that can be compared, without the numbers of blocks."""
    if is_dataclass(value):
        found = {f.name: getattr(value, f.name) for f in fields(value)}
        if "new_block_ids" in found:
            found["new_block_ids"] = [len(new[0]) if new else 0 for new in found["new_block_ids"]]
        return tuple((name, len(part[0]) if name == "block_ids" else plain(part)) for name, part in found.items())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return value if isinstance(value, int | float | str | bool | set | type(None)) else str(type(value))


def run(
    scheduler: Any,
    work: list[tuple[int, str, list[int], int]],
    aborts: dict[str, int] | None = None,
    asked: Callable[[str, list[int], int], Any] = request,
) -> tuple[list[Any], dict[str, Any]]:
    """All steps that a scheduler makes of requests (arrival step, name, prompt, limit), two of them on their way at a
    time, and of each request its tokens, log-probabilities, ranks and end, unless it was aborted before a step."""
    from vllm.v1.request import RequestStatus

    waiting, aborts = deque(sorted(work)), dict(aborts or {})
    steps: list[Any] = []
    got: dict[str, Any] = {name: ([], [], [], []) for _, name, _, _ in work}
    on_the_way: deque[tuple[Any, Any]] = deque()
    cache = Cache({name: prompt for _, name, prompt, _ in work})
    while waiting or scheduler.has_requests() or on_the_way:
        while waiting and (waiting[0][0] <= len(steps) or not scheduler.has_requests()):
            _, name, prompt, limit = waiting.popleft()
            scheduler.add_request(asked(name, prompt, limit))
        for name in [name for name, step in aborts.items() if step <= len(steps) and name in scheduler.requests]:
            scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            del aborts[name], got[name]
        if scheduler.has_requests():
            step = scheduler.schedule()
            steps.append(plain(step))
            cache.follow(step)
            on_the_way.append((step, answer(scheduler, step)))
            if len(on_the_way) < 2 and scheduler.has_requests():
                continue
        if not on_the_way:
            continue
        for outputs in scheduler.update_from_output(*on_the_way.popleft()).values():
            for output in outputs.outputs:
                if output.request_id not in got:
                    continue
                tokens, log_probs, ranks, ends = got[output.request_id]
                tokens += output.new_token_ids
                if output.new_logprobs is not None:
                    assert output.new_logprobs.logprob_token_ids[:, 0].tolist() == list(output.new_token_ids)
                    log_probs += output.new_logprobs.logprobs[:, 0].tolist()
                    ranks += output.new_logprobs.sampled_token_ranks.tolist()
                if output.finish_reason is not None:
                    ends.append((output.finish_reason, output.stop_reason))
        assert len(steps) < 2000
    return steps, got


WORK = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 3), st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=10
)


@settings(max_examples=60, deadline=None)
@given(
    rows=WORK,
    blocks=st.sampled_from([20, 30, 200]),
    sequences=st.sampled_from([3, 16]),
    length=st.sampled_from([40, 64]),
    most_held=st.sampled_from([3, 256]),
    aborts=st.dictionaries(st.sampled_from(["r0", "r1", "r2"]), st.integers(0, 40)),
)
def test_the_same_steps_and_tokens_as_vllms_scheduler(
    rows: Any, blocks: int, sequences: int, length: int, most_held: int, aborts: dict[str, int]
) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from pipeline.rollout.vllm import decoding
    from pipeline.rollout.vllm.prefixes import find_whole_prompts
    from pipeline.rollout.vllm.scheduler import RolloutScheduler

    work = [
        (arrival, f"r{index}", [100 + kind] * 2 + list(range(200, 200 + count)), limit)
        for index, (arrival, kind, count, limit) in enumerate(rows)
    ]
    _, expected = run(make(AsyncScheduler, blocks, sequences, length), work, aborts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "STEPS", most_held)
        steps, got = run(make(RolloutScheduler, blocks, sequences, length), work, aborts)
    if aborts and blocks < 200:  # what is aborted may have ended in one of the two
        expected = {name: expected[name] for name in expected.keys() & got.keys()}
        got = {name: got[name] for name in expected}
    assert got == expected
    if blocks == 200:  # room for all; else some are let in later, so that fewer are preempted
        own = make(AsyncScheduler, blocks, sequences, length)
        find_whole_prompts(own.kv_cache_manager)
        reference, found = run(own, work, aborts)
        assert found == expected
        assert steps == reference
    for name, (tokens, log_probs, ranks, ends) in got.items():
        assert len(tokens) == len(log_probs) == len(ranks), name
        assert len(ends) == 1, name


def test_a_prompt_that_fills_its_blocks_is_read_once() -> None:
    """Its other completions compute its last token, in the same pass, and share all its blocks."""
    from pipeline.rollout.vllm.scheduler import RolloutScheduler

    scheduler = make(RolloutScheduler, 200, 16)
    work = [(0, f"r{index}", list(range(100, 100 + 3 * BLOCK)), 9) for index in range(4)]
    work += [(0, f"other{index}", list(range(200, 200 + 2 * BLOCK + 1)), 9) for index in range(2)]
    steps, got = run(scheduler, work)
    first = dict(steps[0])["num_scheduled_tokens"]
    assert [first[name] for _, name, _, _ in sorted(work)] == [9, 1, 12, 1, 1, 1]
    assert [len(ends) for _, _, _, ends in got.values()] == [1] * 6


def test_who_waits_is_let_in_with_others() -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from pipeline.rollout.vllm.scheduler import RolloutScheduler

    rng = random.Random(0)
    work = [(0, f"r{index}", [index, 1, 2], rng.randrange(30, 60)) for index in range(90)]
    admitting = []
    for kind in (AsyncScheduler, RolloutScheduler):
        steps, got = run(make(kind, 400, 32, tokens=256), work)
        admitting.append(sum(bool(dict(step)["scheduled_new_reqs"]) for step in steps))
        assert {name: ends for name, (_, _, _, ends) in got.items() if len(ends) != 1} == {}
        if kind is AsyncScheduler:
            expected = got
    assert got == expected
    assert admitting[1] < 0.75 * admitting[0]


def test_few_blocks_preempt_few_and_end_all() -> None:
    """Seats for 32 with blocks for about 12: all end with the same tokens as alone, and once lengths are known fewer
    are preempted than vLLM's own scheduler preempts."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from pipeline.rollout.vllm.scheduler import RolloutScheduler

    class Counting(AsyncScheduler):
        preemptions = 0

        def _preempt_request(self, *args: Any, **kwargs: Any) -> None:
            self.preemptions += 1
            super()._preempt_request(*args, **kwargs)

    rng = random.Random(1)
    work = [(0, f"r{index}", [index // 8, 1, 2, 3] * 3, rng.randrange(20, 50)) for index in range(96)]
    counts, ends = [], []
    for kind in (Counting, RolloutScheduler):
        scheduler = make(kind, 150, 32, tokens=256)
        _, got = run(scheduler, work)
        assert [len(end) for _, _, _, end in got.values()] == [1] * len(work)
        counts.append(scheduler.preemptions)
        ends.append(got)
    assert ends[0] == ends[1]
    assert 0 < counts[1] < 0.5 * counts[0]


def test_one_that_needs_the_whole_cache_ends() -> None:
    from pipeline.rollout.vllm.scheduler import RolloutScheduler

    work = [(0, f"r{index}", [index, 1, 2], 60) for index in range(5)]
    _, got = run(make(RolloutScheduler, 17, 4, length=64), work)  # 16 blocks of 4, one sequence of 63 tokens
    assert all(len(ends) == 1 for _, _, _, ends in got.values())


def test_decoding_takes_the_short_way() -> None:
    from pipeline.rollout.vllm.scheduler import RolloutScheduler

    scheduler = make(RolloutScheduler, 200, 16)
    ended = []
    end = scheduler._end_short_step
    scheduler._end_short_step = lambda *step: ended.append(end(*step)) or ended[-1]  # type: ignore[func-returns-value]
    _, got = run(scheduler, [(0, f"r{index}", [1, 2, 3, index], 25) for index in range(4)])
    longest = max(len(tokens) for tokens, _, _, _ in got.values())
    assert len(ended) >= longest - 3


def test_each_request_has_stops_of_its_own() -> None:
    """One ends with every token up to 40, one with none, as it also ignores the model's own end."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from pipeline.rollout.vllm.scheduler import RolloutScheduler

    stops = {"early": list(range(40)), "late": [], "usual": [END]}

    def asked(name: str, prompt: list[int], limit: int) -> Any:
        one = request(name, prompt, limit)
        one.sampling_params.stop_token_ids = stops[name]
        one.sampling_params._all_stop_token_ids = {*stops[name], 49}
        return one

    work = [(0, name, [1, 2, 3], 30) for name in stops]
    _, expected = run(make(AsyncScheduler, 200, 16), work, asked=asked)
    _, got = run(make(RolloutScheduler, 200, 16), work, asked=asked)
    assert got == expected
    tokens = {name: found for name, (found, _, _, _) in got.items()}
    assert len(tokens["early"]) < len(tokens["late"]) == 30 and 49 in tokens["late"]


def test_an_aborted_sequence_says_nothing_about_lengths() -> None:
    from pipeline.rollout.vllm.scheduler import RolloutScheduler

    scheduler = make(RolloutScheduler, 200, 16)
    _, got = run(scheduler, [(0, f"r{index}", [index, 1, 2], 20) for index in range(4)], {"r0": 5})
    assert list(scheduler._lengths) and sorted(scheduler._lengths) == sorted(len(row[0]) for row in got.values())


def test_a_request_for_more_than_sampling_keeps_vllms_way() -> None:
    from vllm import SamplingParams

    from pipeline.rollout.vllm.scheduler import RolloutScheduler

    scheduler = make(RolloutScheduler, 200, 16)
    odd = request("odd", [1, 2, 3], 9)
    odd.sampling_params = SamplingParams(max_tokens=9, logprobs=3)
    scheduler.add_request(odd)
    scheduler.schedule()
    assert scheduler._short_step() is None


def test_a_reset_forgets_every_prefix_and_looks_at_no_other_block() -> None:
    """A cache has a hundred thousand blocks, of which a step fills a few."""
    from pipeline.rollout.vllm.scheduler import RolloutScheduler

    scheduler = make(RolloutScheduler, 5000, 16)
    pool = scheduler.kv_cache_manager.block_pool
    work = [(0, f"r{index}", [index // 2, 1, 2, 3] * 3, 20) for index in range(12)]
    first = run(scheduler, work)
    hashed = [block for block in pool.blocks if block.block_hash is not None]
    assert 12 < len(hashed) < 200
    reset: list[Any] = []
    kind = type(pool.blocks[0])
    with pytest.MonkeyPatch.context() as patch:
        forget = kind.reset_hash

        def counted(block: Any) -> None:
            reset.append(block)
            forget(block)

        patch.setattr(kind, "reset_hash", counted)
        assert scheduler.reset_prefix_cache()
    assert {id(block) for block in reset} == {id(block) for block in hashed}
    assert len(pool.blocks) == 5000 and all(block.block_hash is None for block in pool.blocks)
    steps, got = run(scheduler, work)
    assert got == first[1] and dict(steps[0])["num_scheduled_tokens"] == dict(first[0][0])["num_scheduled_tokens"]
    scheduler.add_request(request("still", [9, 1, 2, 3, 4, 5], 4))
    scheduler.schedule()
    assert not scheduler.reset_prefix_cache()  # one is running
