"""Rollouts by vLLM's offline engine, in this process, with the update merged into its weights or beside them.

Requests carry token ids and ask for no text, so the engine's step loop never detokenises. Every completion is a request
of its own, which the engine reports the moment it ends; samples of one prompt share its prefix in the cache.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters import TinyLoRA
from adapters.merge import Rounding
from adapters.tinylora import value_key
from pipeline.rollout.engine import Completion, EngineError, OnFinished, RefreshReport, Sampling


@dataclass(frozen=True)
class EngineLimits:
    """What the engine may use of a GPU: bytes of key-value cache, sequences at a time, tokens of one forward pass."""

    kv_bytes: int = 1 << 30
    sequences: int = 256
    batched_tokens: int = 8192


class VLLMEngine:
    """A `RolloutEngine` on vLLM.

    model: folder or hub id of the unquantised checkpoint. adapter: the trainer's; its frozen weights, dequantised if
    they are 4-bit, are what the engine serves. rounding: of merged weights; None keeps ΔW beside them
    (`vllm_lowrank.py`). limits: of a GPU. Raises `EngineError` where the trainer's weights were not made from this
    checkpoint.
    """

    name = "vllm"

    def __init__(
        self,
        model: str,
        adapter: TinyLoRA,
        *,
        dtype: str,
        max_model_len: int,
        eos_token_ids: list[int],
        rounding: Rounding | None,
        limits: EngineLimits | None = None,
        seed: int = 0,
    ) -> None:
        if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
            raise EngineError("the engine must live in this process: set VLLM_ENABLE_V1_MULTIPROCESSING=0")
        from vllm import LLM

        from pipeline.rollout.vllm_lowrank import lowrank_options, register

        limits = limits or EngineLimits()
        options: dict[str, Any] = {"enforce_eager": True}
        if torch.cuda.is_available():
            options = {
                "kv_cache_memory_bytes": limits.kv_bytes,
                "max_num_batched_tokens": limits.batched_tokens,
                "gpu_memory_utilization": 0.01,  # only checked against free memory where the cache has a size
            }
        if rounding is None:
            register()
            options |= lowrank_options(adapter.config.rank)
        self.llm = LLM(
            model=model,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=limits.sequences,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            worker_extension_cls="pipeline.rollout.vllm_worker.TinyLoRAWorker",
            seed=seed,
            disable_log_stats=True,
            **options,
        )
        self.adapter, self.merges = adapter, rounding is not None
        self._eos_token_ids = eos_token_ids
        self._requests = 0
        stranger = self._rpc("tinylora_attach", adapter, rounding)
        if stranger:
            raise EngineError(
                f"the trainer's weights were not made from the engine's checkpoint: {stranger} differs; was {model} "
                "changed on disk?"
            )

    @property
    def worker(self) -> Any:
        """vLLM's worker with the methods of `TinyLoRAWorker`; it lives in this process."""
        return self.llm.llm_engine.model_executor.driver_worker.worker

    def _rpc(self, method: str, *arguments: Any) -> Any:
        return self.llm.collective_rpc(method, args=arguments)[0]

    def refresh(self, v: Tensor) -> RefreshReport:
        """Make `v` (groups, u) the policy, in place, and forget cached prefixes."""
        start = time.perf_counter()
        vector = v.detach().float().cpu().tolist()
        self.adapter.served = None
        self._rpc("tinylora_refresh", vector)
        if self.merges:  # the trainer may compute with the same tensors as long as its vector stays this one
            self.adapter.served = (value_key(v), self.worker.tinylora_weights)
        if not self.llm.reset_prefix_cache():
            raise EngineError("vLLM kept its prefix cache across a refresh; refresh only between generations")
        seconds = time.perf_counter() - start
        return RefreshReport(seconds, self._rpc("tinylora_kept_share", vector))

    def digest(self) -> str:
        """Digest of all bits of the adapted weights now being served."""
        return self._rpc("tinylora_digest")

    def generate(self, prompts: list[list[int]], sampling: Sampling, on_finished: OnFinished) -> list[Completion]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        params = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            logprobs=0,
            detokenize=False,
            stop_token_ids=self._eos_token_ids,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._rpc("tinylora_seed", sampling.seed)
        rows: dict[str, int] = {}
        for row, prompt in enumerate(prompts):
            self._requests += 1
            request = str(self._requests)
            rows[request] = row
            engine.add_request(request, {"prompt_token_ids": prompt}, params)
        completions: list[Completion | None] = [None] * len(prompts)
        while engine.has_unfinished_requests():
            for output in engine.step():
                sample = output.outputs[0]
                ids = list(sample.token_ids)
                log_probs = [entry[token].logprob for entry, token in zip(sample.logprobs, ids, strict=True)]
                row = rows.pop(output.request_id)
                completions[row] = completion = Completion(ids, log_probs)
                on_finished(row, completion)
        if rows:
            raise EngineError(f"vLLM ended without finishing {len(rows)} of {len(prompts)} requests")
        return completions  # type: ignore[return-value]

    def close(self) -> None:
        self.adapter.served = None
        self.llm.llm_engine.engine_core.shutdown()
