"""Rollouts by vLLM's offline engine, in this process, with the update merged into its weights or beside them.

Every completion is a request of its own, which is reported the moment it ends; samples of one prompt share its prefix
in the cache. A step over hundreds of sequences takes a GPU less time than vLLM's own loop takes its host, so that loop
is kept short: requests carry token ids, the outputs of the engine's core are read without making text or a record for
every token, and on a GPU `scheduler.py` schedules and `sampler.py` samples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from adapters import TinyLoRA
from adapters.merge import Rounding
from pipeline.rollout.engine import (
    Completion,
    EngineError,
    More,
    OnFinished,
    RefreshReport,
    Sampling,
    no_more,
    with_numbers,
)
from pipeline.rollout.residual import register_vllm_norm
from pipeline.rollout.rotary import register_vllm_rotary

FIRST_PORTION = 1 / 4  # of a forward pass, which a GPU waits for; the next are made faster than it reads them
BATCHED_TOKENS = 4096  # of one forward pass on a CPU, where prompts of numbered rows are read whole


@dataclass(frozen=True)
class EngineLimits:
    """What the engine may use of a GPU: bytes of key-value cache, sequences at a time, tokens of one forward pass."""

    kv_bytes: int = 1 << 30
    sequences: int = 256
    batched_tokens: int = 8192


class VLLMEngine:
    """A `RolloutEngine` on vLLM.

    location: folder or hub id of the checkpoint, of which only settings are read. model: the trainer's, adapted; its
    frozen weights, dequantised if they are 4-bit, are what the engine serves. rounding: of merged weights; None keeps
    ΔW beside them (`lowrank.py`). packed: compute from the trainer's packed weights, without weights of the engine's
    own (`packed.py`). limits: of a GPU. kv_dtype: of keys and values, as vLLM names it. plain: use vLLM's scheduler,
    sampler, rotary embedding, attention and SwiGLU, and `LLM.generate`, which hands completions on when all are done;
    for versions whose private parts nobody has looked at. numbered: rows will have numbers (`Sampling.number`); on a
    CPU prompts are then read whole, since vLLM cannot take back what a generator of its own drew for half a prompt.
    Raises `EngineError` where the trainer's weights do not fill vLLM's model.
    """

    name = "vllm"

    def __init__(
        self,
        location: str,
        model: Any,
        *,
        dtype: str,
        max_model_len: int,
        eos_token_ids: list[int],
        rounding: Rounding | None,
        packed: bool = False,
        kv_dtype: str = "auto",
        limits: EngineLimits | None = None,
        seed: int = 0,
        plain: bool = False,
        numbered: bool = False,
    ) -> None:
        if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
            raise EngineError("the engine must live in this process: set VLLM_ENABLE_V1_MULTIPROCESSING=0")
        from vllm import LLM

        from pipeline.rollout.vllm.layers import METHOD, PackedWeights, Source, building_from

        limits = limits or EngineLimits()
        options: dict[str, Any] = {"enforce_eager": True}
        if torch.cuda.is_available():
            register_vllm_norm()
            options = {
                "hf_overrides": {"head_dtype": "float32"},  # logits, from 16-bit factors, as the trainer's
                # Without compiling, which takes most of the start to make a step 2 % shorter, and without graphs of
                # steps that read prompts: vLLM 0.26 captures those with one token a sequence and attends wrongly.
                "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
                "kv_cache_memory_bytes": limits.kv_bytes,
                "max_num_batched_tokens": limits.batched_tokens,
                "gpu_memory_utilization": 0.01,  # only checked against free memory where the cache has a size
            }
            if not plain:
                from pipeline.rollout.vllm.attention import register_decoding_attention
                from pipeline.rollout.vllm.scheduler import RolloutScheduler
                from pipeline.rollout.vllm.swiglu import register_swiglu

                register_decoding_attention()
                register_vllm_rotary()
                register_swiglu()
                options["scheduler_cls"] = RolloutScheduler
        elif numbered:
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(BATCHED_TOKENS, max_model_len)}
        self.adapter: TinyLoRA = model.tinylora
        weights = PackedWeights(self.adapter, rounding, getattr(torch, dtype)) if packed else None
        with building_from(Source(model, weights, beside=rounding is None)):
            self.llm = LLM(
                model=location,
                quantization=METHOD,
                load_format=METHOD,
                dtype=dtype,
                kv_cache_dtype=kv_dtype,
                max_model_len=max_model_len,
                max_num_seqs=limits.sequences,
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",
                worker_extension_cls="pipeline.rollout.vllm.worker.TinyLoRAWorker",
                seed=seed,
                disable_log_stats=True,
                **options,
            )
        self.holds_merged = rounding is not None and not packed
        self._eos_token_ids = eos_token_ids
        self._count = 0  # of requests so far
        self._pass_tokens = limits.batched_tokens if torch.cuda.is_available() else None
        self._block = self.llm.llm_engine.vllm_config.cache_config.block_size
        self._plain = plain
        self._rpc("tinylora_attach", self.adapter, rounding, weights)
        if torch.cuda.is_available() and not plain:
            self._rpc("tinylora_sample_in_one_pass")

    @property
    def worker(self) -> Any:
        """vLLM's worker with the methods of `TinyLoRAWorker`; it lives in this process."""
        return self.llm.llm_engine.model_executor.driver_worker.worker

    @property
    def _scheduler(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    @property
    def seats(self) -> int:
        """Sequences that are generated at a time at most."""
        return self._scheduler.max_num_running_reqs

    @property
    def preemptions(self) -> int:
        """How often a sequence gave up its place in the cache, to go on later; 0 where vLLM's scheduler runs."""
        return getattr(self._scheduler, "preemptions", 0)

    def _rpc(self, method: str, *arguments: Any) -> Any:
        return self.llm.collective_rpc(method, args=arguments)[0]

    def refresh(self, v: Tensor) -> RefreshReport:
        """Make `v` (groups, u) the policy, in place, and forget cached prefixes."""
        start = time.perf_counter()
        vector = v.detach().float().cpu().tolist()
        self.adapter.served.drop()
        self._rpc("tinylora_refresh", vector)
        if self.holds_merged:
            self.adapter.served.put(v, self.worker.tinylora_weights)
        if not self.llm.reset_prefix_cache():
            raise EngineError("vLLM kept its prefix cache across a refresh; refresh only between generations")
        seconds = time.perf_counter() - start
        return RefreshReport(seconds, lambda: self._rpc("tinylora_kept_share", vector))

    def digest(self) -> str:
        """Digest of all bits of the adapted weights now being served."""
        return self._rpc("tinylora_digest")

    def generate(
        self, prompts: list[list[int]], sampling: Sampling, on_finished: OnFinished, more: More = no_more
    ) -> list[Completion]:
        if not torch.cuda.is_available():
            torch.manual_seed(sampling.seed)  # see `_params`
        if self._plain:
            return self._generate_plainly(prompts, sampling, on_finished, more)
        core, scheduler = self.llm.llm_engine.engine_core, self._scheduler
        completions: list[Completion] = []
        unfinished: dict[str, int] = {}
        requests: Iterator[Any] = iter(())  # not made yet
        made, portion = 0, FIRST_PORTION

        def add(new: list[list[int]]) -> None:
            nonlocal requests
            requests = chain(requests, self._requests(new, sampling, len(completions)))
            completions.extend(Completion([], []) for _ in new)

        add(prompts)
        try:
            while True:
                for request in self._of_a_pass(requests, portion):
                    unfinished[request.request_id] = made
                    made += 1
                    core.add_request(request)
                portion = min(2 * portion, 1)
                if not unfinished:
                    return with_numbers(completions)
                outputs = core.get_output().outputs
                ended = False
                for output in outputs:
                    row = unfinished[output.request_id]
                    completion = completions[row]
                    completion.token_ids.extend(output.new_token_ids)
                    completion.log_probs.extend(output.new_logprobs.logprobs[:, 0].tolist())
                    if output.finish_reason is not None:
                        del unfinished[output.request_id]
                        on_finished(row, completion)
                        ended = True
                if unfinished and not outputs and not scheduler.has_unfinished_requests():
                    raise EngineError(f"vLLM ended without finishing {len(unfinished)} of {len(completions)} requests")
                if ended:
                    add(more(not unfinished and made == len(completions)))
        finally:
            if unfinished:  # an error or Ctrl-C; the engine can generate again
                core.abort_requests(list(unfinished))

    def _of_a_pass(self, requests: Iterator[Any], portion: float) -> Iterator[Any]:
        """The next requests, on a GPU only until what is to be read of their prompts fills `portion` of a forward pass:
        the others are made while it is computed."""
        tokens, prompt = 0, None
        for request in requests:
            yield request
            same = request.prompt_token_ids == prompt  # all whole blocks are found in the cache then
            prompt = request.prompt_token_ids
            tokens += (len(prompt) % self._block or 1) if same else len(prompt)
            if self._pass_tokens is not None and tokens >= portion * self._pass_tokens:
                return

    def _generate_plainly(
        self, prompts: list[list[int]], sampling: Sampling, on_finished: OnFinished, more: More
    ) -> list[Completion]:
        completions: list[Completion] = []
        while prompts:
            params = [one.clone() for one in self._params(sampling, len(completions), len(prompts))]
            outputs = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
            for output in outputs:
                (sample,) = output.outputs
                tokens = list(sample.token_ids)
                log_probs = [place[token].logprob for token, place in zip(tokens, sample.logprobs, strict=True)]
                completions.append(Completion(tokens, log_probs))
                on_finished(len(completions) - 1, completions[-1])
            prompts = more(True)
        return with_numbers(completions)

    def _params(self, sampling: Sampling, first: int, count: int) -> Iterator[Any]:
        """vLLM's parameters of `count` requests from row `first` on, in one object that changes: on a GPU each has a
        seed of its own, made from `sampling.seed`; on a CPU, unless rows have numbers, all draw from torch's generator,
        since seeds of their own are sampled one by one there."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.truncation.top_k,
            top_p=sampling.truncation.top_p,
            max_tokens=sampling.max_tokens,
            logprobs=0,
            detokenize=False,
            stop_token_ids=self._eos_token_ids,
            skip_clone=True,  # a request's copy need not be a deep one, which takes as long as all else
        )
        seeded = torch.cuda.is_available() or sampling.number is not None
        for row in range(first, first + count):
            params.seed = sampling.row_seed(row) if seeded else None
            yield params

    def _requests(self, prompts: list[list[int]], sampling: Sampling, first: int) -> Iterator[Any]:
        """vLLM's requests of the rows from `first` on; each gets a copy of its parameters."""
        engine, tasks = self.llm.llm_engine, self.llm.llm_engine.get_supported_tasks()
        for prompt, params in zip(prompts, self._params(sampling, first, len(prompts)), strict=True):
            self._count += 1
            yield engine.input_processor.process_inputs(
                str(self._count), {"prompt_token_ids": prompt}, params, supported_tasks=tasks
            )

    def close(self) -> None:
        self.adapter.served.drop()
        self.llm.llm_engine.engine_core.shutdown()
        if torch.cuda.is_available():
            from vllm.platforms import current_platform

            # vLLM captures the graphs of all engines of a process into one pool, which these graphs take with them.
            type(current_platform)._global_graph_pool = None
