"""vLLM's sampler with one pass over the logits where rollouts are drawn.

vLLM divides the logits by the temperature in place, draws a random number for each of them, and reads them three more
times for the log-probability of the drawn token and its rank. Where nothing else was asked of a step, `draw` does all
but the rank, which nobody here reads, in one pass. Every other step goes to vLLM's sampler; both read its records of
the requests. Sampling is not part of vLLM's CUDA graphs.

For the second model runner of the tested version, on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import get_num_sampled_and_rejected
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from pipeline.rollout.drawing import draw

UNKNOWN_RANK = 0  # the likeliest token has rank 1


class OnePassSampler(Sampler):
    """In the place of `own`, whose state it shares."""

    def __init__(self, own: Sampler) -> None:
        self.__dict__ = own.__dict__

    def __call__(self, logits: Tensor, input_batch: Any) -> SamplerOutput:
        if not self._only_draws(logits, input_batch.idx_mapping_np):
            return super().__call__(logits, input_batch)
        states = self.sampling_states
        tokens, log_probs = draw(
            logits,
            states.temperature.gpu,
            states.seeds.gpu,
            input_batch.expanded_idx_mapping,
            input_batch.positions,
            input_batch.logits_indices,
        )
        sampled, rejected = get_num_sampled_and_rejected(
            input_batch.seq_lens.new_ones(input_batch.num_reqs),
            input_batch.seq_lens,
            input_batch.cu_num_logits,
            input_batch.idx_mapping,
            self.req_states.prefill_len.gpu,
        )
        return SamplerOutput(
            sampled_token_ids=tokens[:, None],
            logprobs_tensors=LogprobsTensors(
                tokens[:, None], log_probs[:, None], torch.full_like(tokens, UNKNOWN_RANK)
            ),
            num_nans=None,
            num_sampled=sampled,
            num_rejected=rejected,
        )

    def _only_draws(self, logits: Tensor, slots: np.ndarray) -> bool:
        """Whether all requests of the step, in `slots` of the records, draw from the whole distribution at a
        temperature, or greedily, and want the log-probability of the drawn token alone."""
        states = self.sampling_states
        return bool(
            len(logits) == len(slots)  # one token each: none is speculative
            and logits.dtype == torch.float32
            and self.logprobs_mode == "processed_logprobs"
            and not (self.compute_nans or self.use_fp64_gumbel)
            and states.max_num_logprobs(slots) == 0
            and self.logprob_token_ids_state.max_num_token_ids(slots) == 0
            and (states.top_k.np[slots] == states.vocab_size).all()
            and (states.top_p.np[slots] == 1).all()
            and not states.min_p.np[slots].any()
            and not self.penalties_state.use_penalty[slots].any()
            and not self.logit_bias_state.use_logit_bias[slots].any()
            and not self.bad_words_state.num_bad_words.np[slots].any()
        )


def sample_in_one_pass(runner: Any) -> None:
    """Exchange the sampler of a model runner, if it is vLLM's."""
    if type(getattr(runner, "sampler", None)) is Sampler:
        runner.sampler = OnePassSampler(runner.sampler)
