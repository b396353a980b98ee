"""Rollouts by `generate` of transformers, on the trainer's own model: no second copy of the weights, nothing to merge.

Slower than vLLM, exact by construction: the sampled policy is the trained one, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from pipeline.rollout.engine import Completion, More, OnFinished, RefreshReport, Sampling, no_more, with_numbers
from pipeline.rollout.sampling_support import Truncation


class _ScoreTap(LogitsProcessor):
    """Makes the scores (rows, vocabulary) of the step at hand those that are sampled from, and keeps them. With a seed
    for each row it adds noise that makes the largest a draw (the Gumbel trick)."""

    def __init__(self, temperature: float, truncation: Truncation, seeds: list[int], device: torch.device) -> None:
        self.temperature = temperature or 1.0
        self.truncation = truncation
        self.scores = torch.empty(0)
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.scores = scores / self.temperature
        if self.truncation:
            self.scores = self.truncation.of(self.scores)
        if not self.generators:
            return self.scores
        noise = torch.empty_like(self.scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return self.scores - noise.log()


class _Recorder(StoppingCriteria):
    """Sees every token as it is drawn; with the tapped scores, that is its log-probability.

    So log-probabilities cost (rows, steps) memory rather than (rows, steps, vocabulary), and a row can be handed on at
    the step that ends it.
    """

    def __init__(self, rows: list[int], tap: _ScoreTap, eos_token_ids: list[int], on_finished: OnFinished) -> None:
        self.rows = rows
        self.tap = tap
        self.eos = set(eos_token_ids)
        self.on_finished = on_finished
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.log_probs: list[list[float]] = [[] for _ in rows]
        self.done = [False] * len(rows)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        drawn = input_ids[:, -1]
        log_probs = torch.log_softmax(self.tap.scores.float(), dim=-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        for i, (token, log_prob) in enumerate(zip(drawn.tolist(), log_probs.tolist(), strict=True)):
            if self.done[i]:
                continue
            self.tokens[i].append(token)
            self.log_probs[i].append(log_prob)
            if token in self.eos:
                self.finish(i)
        return torch.tensor(self.done, device=drawn.device)

    def finish(self, i: int) -> None:
        self.done[i] = True
        self.on_finished(self.rows[i], Completion(self.tokens[i], self.log_probs[i]))


class TransformersEngine:
    """A `RolloutEngine` on the adapted model itself. `batch_size` rows are generated together, shortest prompts
    first."""

    name = "transformers"

    def __init__(self, model: Any, *, eos_token_ids: list[int], pad_token_id: int, batch_size: int = 128) -> None:
        self.model = model
        self.eos_token_ids = eos_token_ids
        self.pad_token_id = pad_token_id
        self.batch_size = batch_size

    def refresh(self, v: Tensor) -> RefreshReport:
        """Nothing to move: the layers read `v` where it is, unless another vector is given."""
        with torch.no_grad():
            self.model.tinylora.v.copy_(v.to(self.model.tinylora.v.device))
        return RefreshReport(0.0, lambda: 1.0)

    def generate(
        self, prompts: list[list[int]], sampling: Sampling, on_finished: OnFinished, more: More = no_more
    ) -> list[Completion]:
        """As the protocol says; more rows are asked for between two batches."""
        prompts, completions = list(prompts), dict[int, Completion]()

        def collect(row: int, completion: Completion) -> None:
            completions[row] = completion
            on_finished(row, completion)

        def sorted_rows(start: int) -> list[int]:
            return sorted(range(start, len(prompts)), key=lambda row: len(prompts[row]))

        waiting = sorted_rows(0)
        was_training, own_settings = self.model.training, self.model.generation_config
        self.model.eval()
        # Without those that a model brings: Qwen2.5-Coder's penalty on repetition would make it another policy.
        self.model.generation_config = GenerationConfig()
        state = torch.random.get_rng_state()
        torch.manual_seed(sampling.seed)
        while waiting:
            batch, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
            self._generate_batch(batch, prompts, sampling, collect)
            known = len(prompts)
            prompts += more(not waiting)
            waiting += sorted_rows(known)
        torch.random.set_rng_state(state)
        self.model.generation_config = own_settings
        self.model.train(was_training)
        return with_numbers([completions[row] for row in range(len(prompts))])

    def _generate_batch(
        self, rows: list[int], prompts: list[list[int]], sampling: Sampling, collect: OnFinished
    ) -> None:
        device = self.model.tinylora.v.device
        width = max(len(prompts[row]) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):  # padded on the left, as decoding needs
            ids[i, width - len(prompts[row]) :] = torch.tensor(prompts[row])
            mask[i, width - len(prompts[row]) :] = 1
        seeded = sampling.number is not None and sampling.temperature > 0
        seeds = [sampling.row_seed(row) for row in rows] if seeded else []
        tap = _ScoreTap(sampling.temperature, sampling.truncation, seeds, device)
        recorder = _Recorder(rows, tap, self.eos_token_ids, collect)
        greedy = seeded or sampling.temperature == 0
        with torch.inference_mode():
            self.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=sampling.max_tokens,
                do_sample=not greedy,
                **({} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}),  # the tap has applied all three
                pad_token_id=self.pad_token_id,
                eos_token_id=self.eos_token_ids,
                logits_processor=LogitsProcessorList([tap]),
                stopping_criteria=StoppingCriteriaList([recorder]),
                use_cache=True,
            )
        for i, done in enumerate(recorder.done):
            if not done:
                recorder.finish(i)

    def close(self) -> None:
        pass
