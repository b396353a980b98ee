"""Rollouts by vLLM's offline engine, in this process, on merged weights.

Requests carry token ids and ask for no text, so the engine's step loop never detokenises. Every completion is a request
of its own, which the engine reports the moment it ends; samples of one prompt share its prefix in the cache.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from adapters import TinyLoRA
from adapters.merge import Rounding
from pipeline.rollout.engine import Completion, EngineError, OnFinished, RefreshReport, Sampling


class VLLMEngine:
    """A `RolloutEngine` on vLLM.

    model: folder or hub id of the unquantised checkpoint. adapter: the trainer's, whose base must be the engine's: the
    fingerprints are compared at the start. quant: `nf4` serves the dequantised 4-bit weights that the trainer holds.
    Raises `EngineError` where the bases differ.
    """

    name = "vllm"

    def __init__(
        self,
        model: str,
        adapter: TinyLoRA,
        *,
        quant: str,
        dtype: str,
        max_model_len: int,
        eos_token_ids: list[int],
        rounding: Rounding,
        gpu_memory_utilization: float = 0.5,
        max_num_seqs: int = 256,
        seed: int = 0,
    ) -> None:
        from vllm import LLM

        on_gpu = torch.cuda.is_available()
        options: dict[str, Any] = (
            {"gpu_memory_utilization": gpu_memory_utilization} if on_gpu else {"enforce_eager": True}
        )
        self._llm = LLM(
            model=model,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            worker_extension_cls="pipeline.rollout.vllm_worker.TinyLoRAWorker",
            seed=seed,
            disable_log_stats=True,
            **options,
        )
        self._eos_token_ids = eos_token_ids
        self._requests = 0
        served = self._rpc(
            "tinylora_attach", adapter.names, str(adapter.factors_file), adapter.config.to_dict(), quant, rounding
        )
        if served != adapter.base_fingerprint:
            raise EngineError(
                f"the engine's base weights (fingerprint {served}) are not the trainer's ({adapter.base_fingerprint}): "
                f"{model} was changed on disk or quantised in another way"
            )

    def _rpc(self, method: str, *arguments: Any) -> Any:
        return self._llm.collective_rpc(method, args=arguments)[0]

    def refresh(self, v: Tensor) -> RefreshReport:
        """Merge `v` (groups, u) into the served weights in place and forget cached prefixes."""
        start = time.perf_counter()
        vector = v.detach().float().cpu().tolist()
        self._rpc("tinylora_refresh", vector)
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM kept its prefix cache across a refresh; refresh only between generations")
        seconds = time.perf_counter() - start
        return RefreshReport(seconds, self._rpc("tinylora_kept_share", vector))

    def digest(self) -> str:
        """Digest of all bits of the adapted weights now being served."""
        return self._rpc("tinylora_digest")

    def generate(self, prompts: list[list[int]], sampling: Sampling, on_finished: OnFinished) -> list[Completion]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
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
        self._llm.llm_engine.engine_core.shutdown()
