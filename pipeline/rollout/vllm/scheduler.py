"""vLLM's scheduler with a short way through steps that only decode, which is what nearly all steps of a rollout do.

A step over hundreds of sequences takes vLLM's own bookkeeping longer than it takes a fast GPU. Where every sequence
needs exactly one more token, a step is the same for all of them: slots of the key-value cache are asked for only where
a block begins, and the tokens, which nobody reads before a sequence ends, are handed on with its end. Every other step
is vLLM's. The state between steps is vLLM's own, so short and ordinary steps follow each other in any order, and
sequences get the same tokens as without this class, and the same slots while nobody waits (tests compare the two).

Who waits is let in together with others: a step that also reads prompts has no CUDA graph and lasts several times as
long, and no one looks at the latency of a single rollout. The cache need not hold the longest possible completions of
all seats: as many are let in as can be expected to end, by the lengths of those that ended before. Where they need more
nevertheless, vLLM preempts the last that came in, which later goes on with the tokens that it has.

Left out: everything that is not plain sampling with the log-probability of the sampled token from a model whose layers
all attend to everything, on one GPU with vLLM's second model runner. Then all steps are vLLM's.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.utils import check_stop, remove_all
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import LogprobsLists

CROWD_SHARE = 6  # that part of all seats is free before new sequences are let in
FIRST_SHARE = 0.5  # of the longest completion that one is expected to take, before any has ended
SEATS = ("max_num_running_reqs", "max_num_active_reqs")  # vLLM's names of the limit, by version
MEMORY = 1024  # ended completions that the expected length is the mean of


class RolloutScheduler(AsyncScheduler):
    """For `LLM(scheduler_cls=RolloutScheduler)`, beside asynchronous scheduling."""

    running: list[Any]
    finished_req_ids: set[str]
    reset_preempted_req_ids: set[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kinds = [group.kv_cache_spec for group in self.kv_cache_config.kv_cache_groups]
        self._block = kinds[0].block_size if kinds else 0
        self._short: list[SchedulerOutput] = []  # short steps on their way through the GPU
        self._crowd = max(1, self.max_num_running_reqs // CROWD_SHARE)
        self._lengths: deque[int] = deque(maxlen=MEMORY)  # of completions that ended
        self._changed = True  # whether room may have come up since it was last looked for
        self.preemptions = 0
        self._possible = (
            [type(kind) for kind in kinds] == [FullAttentionSpec]
            and self.use_v2_model_runner
            and not self.use_pp
            and not self.num_spec_tokens
            and not self.log_stats
            and not self.needs_kv_cache_zeroing
            and self.lora_config is self.connector is self.ec_connector is None
        )

    def add_request(self, request: Any) -> None:
        self._changed = True
        request.held = _Held() if _is_plain(request) else None
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if not self._possible or self._pause_state != PauseState.UNPAUSED:
            return super().schedule(*args, **kwargs)
        let_in = self._let_in()
        step = None if let_in else self._short_step()
        if step is not None:
            return step
        self._changed = self._changed or let_in > 0  # the rest may come in with the next step
        seats = {name: getattr(self, name) for name in SEATS if hasattr(self, name)}
        try:
            for name in seats:
                setattr(self, name, len(self.running) + let_in)
            return super().schedule(*args, **kwargs)
        finally:
            for name, count in seats.items():
                setattr(self, name, count)

    def _let_in(self) -> int:
        """How many of those who wait come in: all, a crowd of them, or none yet."""
        running, waiting = self.get_request_counts()
        free = self.max_num_running_reqs - running
        wanted = min(waiting, self._crowd) if running else 1
        if not waiting or free < wanted or (running and not self._changed):
            return 0
        room = min(self._room(), free)
        self._changed = False
        return room if room >= wanted else 0

    def _room(self) -> int:
        """How many of those who wait can be expected to end, beside those who run, without one being preempted."""
        block, present = self._block, set()
        mean = sum(self._lengths) / len(self._lengths) if self._lengths else None

        def left(request: Any) -> float:
            """Tokens still to come; of one that is longer than most, as many as an eighth of those."""
            expected = FIRST_SHARE * request.max_tokens if mean is None else mean
            return max(expected - request.num_output_tokens, expected / 8)

        def prompt(request: Any) -> tuple[Any, int]:
            """What stands for the full blocks of the prompt, and their number."""
            count = request.num_prompt_tokens // block
            return (request.block_hashes[count - 1] if 0 < count <= len(request.block_hashes) else None), count

        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        for request in self.running:
            free -= math.ceil(left(request) / block)
            present.add(prompt(request)[0])
        count = 0
        for request in self.waiting:
            key, shared = prompt(request)
            free -= math.ceil((request.num_tokens + left(request)) / block)
            if key is not None and key in present:
                free += shared
            if free < 0:
                break
            present.add(key)
            count += 1
        return count if self.running else max(count, 1)

    def _short_step(self) -> SchedulerOutput | None:
        """One more token for every running sequence that is not about to end; None if this is no such step."""
        block, longest = self._block, self.max_model_len
        requests, beginning = [], []
        for request in self.running:
            sampling, computed = request.num_output_placeholders, request.num_computed_tokens
            if sampling and computed + 2 - sampling >= request.num_prompt_tokens + request.max_tokens:
                continue  # its last token is being sampled
            if request.held is None or len(request._all_token_ids) + sampling != computed + 1 or computed + 2 > longest:
                return None
            requests.append(request)
            if computed % block == 0:
                beginning.append(request)
        manager = self.kv_cache_manager
        if not 0 < len(requests) <= self.max_num_scheduled_tokens:
            return None
        if len(beginning) > manager.block_pool.get_num_free_blocks():
            return None
        self.current_step += 1
        manager.new_step_starts()
        blocks = {r.request_id: manager.allocate_slots(r, 1).get_block_ids(allow_none=True) for r in beginning}
        ids = [request.request_id for request in requests]
        step = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=CachedRequestData(
                req_ids=ids,
                resumed_req_ids=set(),
                new_token_ids=[],
                all_token_ids={},
                new_block_ids=[blocks.get(i) for i in ids],
                num_computed_tokens=[request.num_computed_tokens for request in requests],
                num_output_tokens=[r.num_computed_tokens + 1 - r.num_prompt_tokens for r in requests],
            ),
            num_scheduled_tokens=dict.fromkeys(ids, 1),
            total_num_scheduled_tokens=len(ids),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            num_common_prefix_blocks=manager.get_num_common_prefix_blocks(ids[0]),
            preempted_req_ids=self.reset_preempted_req_ids,
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=[],
        )
        for request in requests:
            request.num_computed_tokens += 1
            request.num_in_flight_tokens += 1
            request.num_output_placeholders += 1
        self.finished_req_ids, self.reset_preempted_req_ids = set(), set()
        self._short.append(step)
        return step

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        if any(step is scheduler_output for step in self._short):
            self._short = [step for step in self._short if step is not scheduler_output]
            return self._end_short_step(model_runner_output)
        requests = {name: self.requests.get(name) for name in scheduler_output.num_scheduled_tokens}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for of_client in outputs.values():
            for output in of_client.outputs:
                request = requests.get(output.request_id)
                if request is not None and request.held:
                    request.held.deliver(request, output)
        return outputs

    def _end_short_step(self, results: Any) -> dict[int, EngineCoreOutputs]:
        """Give every sequence its token; the outputs of those that end with it."""
        requests, block, longest = self.requests, self._block, self.max_model_len
        log_probs, ranks = results.logprobs.logprobs[:, 0].tolist(), results.logprobs.sampled_token_ranks.tolist()
        ended = []
        for name, tokens, log_prob, rank in zip(
            results.req_ids, results.sampled_token_ids, log_probs, ranks, strict=True
        ):
            request = requests.get(name)
            if request is None:  # it ended in the step before
                continue
            (token,) = tokens
            held, generated, known = request.held, request._output_token_ids, request._all_token_ids
            held.log_probs.append(log_prob)
            held.ranks.append(rank)
            generated.append(token)  # as `append_output_token_ids`, which looks for a full block at every token
            known.append(token)
            length = len(known)
            if length % block == 0:
                request.update_block_hashes()
            request.num_in_flight_tokens -= 1
            request.num_output_placeholders -= 1
            computed = request.num_computed_tokens - request.num_output_placeholders
            if computed % block == 0:
                self.kv_cache_manager.cache_blocks(request, computed)
            if (
                token in request.sampling_params.all_stop_token_ids
                or len(generated) >= request.max_tokens
                or length >= longest
            ) and check_stop(request, longest):
                ended.append(request)
        if not ended:
            return {}
        outputs: dict[int, EngineCoreOutputs] = {}
        for request in ended:
            output = EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                stop_reason=request.stop_reason,
            )
            request.held.deliver(request, output)
            self._free_request(request)
            outputs.setdefault(request.client_index, EngineCoreOutputs(outputs=[])).outputs.append(output)
        self.running = remove_all(self.running, set(ended))
        return outputs

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._changed = True
        self._lengths.append(request.num_output_tokens)
        return super()._free_request(request, *args, **kwargs)

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """As vLLM's, which looks at every block of the cache, for the few that hold a prefix."""
        if not self._possible or self.running:
            return super().reset_prefix_cache(*args, **kwargs)
        pool = self.kv_cache_manager.block_pool
        known = pool.cached_block_hash_to_block._cache.values()
        blocks = pool.blocks
        pool.blocks = [b for one in known for b in (one.values() if isinstance(one, dict) else (one,))]
        try:
            return super().reset_prefix_cache(*args, **kwargs)
        finally:
            pool.blocks = blocks

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self.preemptions += 1
        self._short.clear()  # vLLM knows what of the steps on their way is still wanted
        super()._preempt_request(request, *args, **kwargs)


class _Held:
    """The log-probabilities and ranks of a sequence's tokens that were not handed on yet; true if there are any."""

    __slots__ = ("log_probs", "ranks")

    def __init__(self) -> None:
        self.log_probs: list[float] = []
        self.ranks: list[int] = []

    def __len__(self) -> int:
        return len(self.ranks)

    def deliver(self, request: Any, output: EngineCoreOutput) -> None:
        """Put what was held before the tokens of `output`."""
        if output.new_logprobs is not None:
            self.log_probs += output.new_logprobs.logprobs[:, 0].tolist()
            self.ranks += output.new_logprobs.sampled_token_ranks.tolist()
        output.new_token_ids = request.output_token_ids[-len(self) :]
        output.new_logprobs = LogprobsLists(
            np.array(output.new_token_ids, dtype=np.int64)[:, None],
            np.array(self.log_probs, dtype=np.float32)[:, None],
            np.array(self.ranks, dtype=np.int64),
        )
        self.log_probs, self.ranks = [], []


def _is_plain(request: Any) -> bool:
    """Whether the request only samples, and wants the log-probability of each sampled token and no other."""
    params = request.sampling_params
    return (
        params is not None
        and params.logprobs == 0
        and params.prompt_logprobs is None
        and not getattr(params, "logprob_token_ids", None)
        and getattr(params, "repetition_detection", None) is None
        and not request.use_structured_output
        and not request.resumable
        and not request.has_encoder_inputs
    )
