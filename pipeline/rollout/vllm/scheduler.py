"""vLLM's scheduler with a short way through steps that only decode, which is what nearly all steps of a rollout do.

A step over hundreds of sequences takes vLLM's own bookkeeping longer than it takes a fast GPU. Where every sequence
needs exactly one more token, a step is the same for all of them, and `decoding.py` keeps its books in arrays: slots of
the key-value cache are asked for only where a block begins, and the tokens, which nobody reads before a sequence ends,
are handed on with its end. Every other step is vLLM's, and finds vLLM's own state up to date, so short and ordinary
steps follow each other in any order, and sequences get the same tokens as without this class, in the same steps while
nobody waits (tests compare the two). Blocks of generated tokens are offered to other sequences only when vLLM's steps
come by: no prompt begins with them.

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
from itertools import chain
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.utils import check_stop, remove_all
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import RequestStatus

from pipeline.rollout.vllm.decoding import DecodingRows
from pipeline.rollout.vllm.prefixes import find_whole_prompts

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
        self._decoding: DecodingRows | None = None  # the running sequences, while steps are short
        self._short: list[tuple[SchedulerOutput, DecodingRows]] = []  # short steps on their way through the GPU
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
        if self._possible and self.cache_config.enable_prefix_caching:
            find_whole_prompts(self.kv_cache_manager)

    def add_request(self, request: Any) -> None:
        self._changed = True
        request.held = _Held() if _is_plain(request) else None
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if not self._possible or self._pause_state != PauseState.UNPAUSED:
            self._write_back()
            return super().schedule(*args, **kwargs)
        let_in = self._let_in()
        step = None if let_in else self._short_step()
        if step is not None:
            return step
        self._write_back()
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
        """How many of those who wait come in: as many as fit, if they are all or a crowd; else none yet."""
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
            """Tokens expected still to come, an eighth of the mean at least."""
            expected = FIRST_SHARE * request.max_tokens if mean is None else mean
            held = self._decoding.held(request.request_id) if self._decoding is not None else 0
            return max(expected - request.num_output_tokens - held, expected / 8)

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
        if self._decoding is None:
            self._decoding = self._rows_that_decode()
        decoding, manager = self._decoding, self.kv_cache_manager
        if decoding is None:
            return None
        decoding.choose()
        names = decoding.names
        computed = decoding.computed[decoding.rows]
        beginning = np.flatnonzero(computed % self._block == 0).tolist()  # at the first token of a block
        if not 0 < len(names) <= self.max_num_scheduled_tokens:
            return None
        if len(beginning) > manager.block_pool.get_num_free_blocks():
            return None
        self.current_step += 1
        manager.new_step_starts()
        new_blocks: list[tuple[list[int]] | None] = [None] * len(names)
        tables = manager.coordinator.single_type_managers[0].req_to_blocks
        for index, block in zip(beginning, manager.block_pool.get_new_blocks(len(beginning)), strict=True):
            tables[names[index]].append(block)
            new_blocks[index] = ([block.block_id],)
        step = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=CachedRequestData(
                req_ids=names,
                resumed_req_ids=set(),
                new_token_ids=[],
                all_token_ids={},
                new_block_ids=new_blocks,
                num_computed_tokens=computed.tolist(),
                num_output_tokens=(computed + 1 - decoding.prompt[decoding.rows]).tolist(),
            ),
            num_scheduled_tokens=dict.fromkeys(names, 1),
            total_num_scheduled_tokens=len(names),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            num_common_prefix_blocks=manager.get_num_common_prefix_blocks(names[0]),
            preempted_req_ids=self.reset_preempted_req_ids,
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=[],
        )
        decoding.step()
        self.finished_req_ids, self.reset_preempted_req_ids = set(), set()
        self._short.append((step, decoding))
        return step

    def _rows_that_decode(self) -> DecodingRows | None:
        """The running sequences but for those whose last token is on its way; None if one of them does not decode."""
        requests = []
        for request in self.running:
            length = request.num_tokens + request.num_output_placeholders
            if length >= min(request.num_prompt_tokens + request.max_tokens, self.max_model_len):
                continue
            if request.held is None or length != request.num_computed_tokens + 1:
                return None
            requests.append(request)
        return DecodingRows(requests, self.max_model_len)

    def _write_back(self) -> None:
        """Bring vLLM's requests up to date, before a step of its own."""
        if self._decoding is not None:
            self._decoding.write_back(hashes=True)
            self._decoding = None

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        for index, (step, decoding) in enumerate(self._short):
            if step is scheduler_output:
                del self._short[index]
                return self._end_short_step(decoding, model_runner_output)
        self._write_back()
        requests = {name: self.requests.get(name) for name in scheduler_output.num_scheduled_tokens}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for of_client in outputs.values():
            for output in of_client.outputs:
                request = requests.get(output.request_id)
                if request is not None and request.held:
                    request.held.deliver(request, output)
        return outputs

    def _end_short_step(self, decoding: DecodingRows, results: Any) -> dict[int, EngineCoreOutputs]:
        """Give every sequence its token; the outputs of those that end with it."""
        tokens = np.fromiter(chain.from_iterable(results.sampled_token_ids), np.int64, len(results.req_ids))
        log_probs, ranks = results.logprobs.logprobs[:, 0], results.logprobs.sampled_token_ranks
        ended = decoding.take(results.req_ids, tokens, log_probs, ranks)
        past = decoding is not self._decoding
        if past or decoding.full:
            decoding.write_back(hashes=past)
        outputs: dict[int, EngineCoreOutputs] = {}
        for request in ended:
            check_stop(request, self.max_model_len)
            output = EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                stop_reason=request.stop_reason,
            )
            request.held.deliver(request, output)
            self._free_request(request)
            outputs.setdefault(request.client_index, EngineCoreOutputs(outputs=[])).outputs.append(output)
        if ended:
            self.running = remove_all(self.running, set(ended))
        return outputs

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        for decoding in (self._decoding, *(decoding for _, decoding in self._short)):
            if decoding is not None:
                decoding.drop(request.request_id)
        self._changed = True
        if request.status != RequestStatus.FINISHED_ABORTED:
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
        self._write_back()
        known = request.num_computed_tokens - request.num_output_placeholders
        self.kv_cache_manager.cache_blocks(request, known)  # what it finds again when it goes on, if it is still there
        self._short.clear()  # vLLM knows what of the steps on their way is still wanted
        super()._preempt_request(request, *args, **kwargs)


class _Held:
    """The log-probabilities and ranks of a sequence's tokens that were not handed on yet; true if there are any."""

    __slots__ = ("_count", "_log_probs", "_ranks")

    def __init__(self) -> None:
        self._log_probs: list[np.ndarray] = []
        self._ranks: list[np.ndarray] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, log_probs: np.ndarray, ranks: np.ndarray) -> None:
        """Of the next tokens, (n,) each."""
        self._log_probs.append(log_probs)
        self._ranks.append(ranks)
        self._count += len(ranks)

    def deliver(self, request: Any, output: EngineCoreOutput) -> None:
        """Put what was held before the tokens of `output`."""
        if output.new_logprobs is not None:
            self.add(output.new_logprobs.logprobs[:, 0], output.new_logprobs.sampled_token_ranks)
        output.new_token_ids = request.output_token_ids[-len(self) :]
        output.new_logprobs = LogprobsLists(
            np.array(output.new_token_ids, dtype=np.int64)[:, None],
            np.concatenate(self._log_probs)[:, None],
            np.concatenate(self._ranks),
        )
        self._log_probs, self._ranks, self._count = [], [], 0


def _is_plain(request: Any) -> bool:
    """Whether the request only samples, and wants the log-probability of each sampled token and no other."""
    params = request.sampling_params
    return (
        params is not None
        and params.logprobs == 0
        and params.prompt_logprobs is None
        and not getattr(params, "logprob_token_ids", None)
        and not params.min_tokens
        and getattr(params, "repetition_detection", None) is None
        and not request.use_structured_output
        and not request.resumable
        and not request.has_encoder_inputs
    )
