"""The length of a step as a KL: Adam says where, the Fisher matrix of the scalars says how far.

With g = ∇_v log π(completion) and F = E[g gᵀ], the policy after a step s·d has KL(π ‖ π') = s²/2 dᵀ F d + O(s³)
(Kakade, "A Natural Policy Gradient", 2001; Schulman et al., arXiv 1502.05477). For a few dozen scalars F is tiny, and
the gradients of single completions, of which it is made, come with the training pass (`TinyLoRA.per_row`). So a step
has a KL instead of a learning rate, which means something else for every model, adapter and batch.

The direction stays Adam's. F is an average over steps with a multiple of the identity added: of fewer completions than
scalars it would know nothing of most directions. What the KL of a step really was corrects the
next ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adapters import TinyLoRA
from pipeline.training.logprobs import kl_k3, packed_rows

MEASURED_ROWS = 32
MEMORY = 0.9  # of the average of F, per step
CORRECTION_RATE = 0.3  # of the logarithm of measured / predicted, per step
CORRECTION_LIMIT = 16.0
ABOVE_NOISE = 3.0  # a measured KL counts from so many times its noise on


def completion_scores(row_gradients: Tensor, token_weights: Tensor, mask: Tensor) -> Tensor:
    """∇ log π of single completions (n, p) from what the loss gave for them.

    row_gradients (n, p): ∂loss/∂v of each row. token_weights (n, t): ∂loss/∂ log p of each token, about the same for
    all of a row, whose mean is divided out. mask (n, t): 1 for tokens of the completion. Rows without a weight are
    left out.
    """
    mean = (token_weights * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    known = mean != 0
    return row_gradients[known] / mean[known].unsqueeze(1)


def ridged_fisher(fisher: Tensor, count: float) -> Tensor:
    """F (p, p) of about `count` completions plus the share p / (p + count) of tr(F)/p · I.

    Nothing is taken from F for it: along the step, which was made from the same completions, F is known best.
    """
    size = len(fisher)
    ridged = fisher.clone()
    ridged.diagonal().add_(size / (size + count) * fisher.trace() / size)
    return ridged


def predicted_kl(step: Tensor, fisher: Tensor) -> float:
    """½ stepᵀ F step in nats a completion; step (p,), fisher (p, p)."""
    return float(step @ fisher @ step) / 2


def corrected(correction: float, predicted: float, measured: float, noise: float) -> float:
    """The factor that predictions are multiplied with, after a step whose KL was predicted with it and measured.

    A measurement that is not well above its noise says only that the KL is small.
    """
    if predicted <= 0 or measured < ABOVE_NOISE * noise:
        return correction
    ratio = min(CORRECTION_LIMIT, max(1 / CORRECTION_LIMIT, measured / predicted))
    return min(CORRECTION_LIMIT, max(1 / CORRECTION_LIMIT, correction * ratio**CORRECTION_RATE))


class KLAdam(torch.optim.Optimizer):
    """Adam whose steps have a predicted KL of `step_kl` nats a completion, times lr² (the schedule's factor).

    One parameter, of p numbers in all. Before each step `observe` takes the completions' scores; without any the step
    is left out. `last_length` is the factor that stood in the learning rate's place, `last_predicted` the step's KL.
    """

    def __init__(self, parameters: Iterable[Tensor], step_kl: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__(parameters, {"lr": 1.0, "betas": betas, "eps": 1e-12, "step_kl": step_kl})
        self.last_length = self.last_predicted = 0.0
        self._scores: list[Tensor] = []

    @property
    def parameter(self) -> Tensor:
        return self.param_groups[0]["params"][0]

    def _kept(self) -> dict[str, Any]:
        """The state, made on first use; tensors, so that it is saved and restored with a checkpoint."""
        v = self.parameter
        state = self.state[v]
        if not state:
            size = v.numel()
            state |= {"exp_avg": torch.zeros_like(v), "exp_avg_sq": torch.zeros_like(v)}
            state |= {"fisher": torch.zeros(size, size, dtype=torch.float32, device=v.device)}
            state |= {"step": torch.tensor(0.0), "count": torch.tensor(0.0), "correction": torch.tensor(1.0)}
        return state

    @property
    def correction(self) -> float:
        return float(self._kept()["correction"])

    def observe(self, scores: Tensor) -> None:
        """Take ∇ log π of completions (n, p) of the step to come, in one call or several."""
        self._scores.append(scores.detach().float())

    def take_observed(self) -> list[Tensor]:
        """The scores taken for the step to come, which are another optimizer's to make it with."""
        scores, self._scores = self._scores, []
        return scores

    def measured(self, kl: float, noise: float) -> None:
        """Take what the KL of the last step was, in nats a completion, and the noise of that number."""
        state = self._kept()
        state["correction"].fill_(corrected(float(state["correction"]), self.last_predicted, kl, noise))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group, state, v = self.param_groups[0], self._kept(), self.parameter
        parts, self._scores = self._scores, []
        self.last_length = self.last_predicted = 0.0
        if v.grad is None or not sum(len(part) for part in parts):
            return
        scores = torch.cat(parts)
        state["fisher"].mul_(MEMORY).add_(scores.mT @ scores / len(scores), alpha=1 - MEMORY)
        state["count"].mul_(MEMORY).add_(len(scores))
        state["step"] += 1
        steps, (beta1, beta2) = float(state["step"]), group["betas"]
        state["exp_avg"].lerp_(v.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(v.grad, v.grad, value=1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt().add_(group["eps"])
        direction = (state["exp_avg"] / (1 - beta1**steps) / scale).flatten()
        average = state["fisher"] / (1 - MEMORY**steps)
        cost = predicted_kl(direction, ridged_fisher(average, float(state["count"]))) * float(state["correction"])
        if not (math.isfinite(cost) and cost > 0):
            return
        self.last_length = group["lr"] * math.sqrt(group["step_kl"] / cost)
        self.last_predicted = self.last_length**2 * cost
        v.sub_(self.last_length * direction.view_as(v))


class StepLength:
    """The steps of one trainer: what the optimizer is told before each, and what its KL was after it."""

    def __init__(self, bank: TinyLoRA, step_kl: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.optimizer = KLAdam([bank.v], step_kl, betas)
        self._bank = bank
        self._rows: tuple[Tensor, Tensor] | None = None  # of the part at hand: copies of `v`, mask of its tokens
        self._token_weights: Tensor | None = None  # ∂loss/∂ log p of the rows at hand
        self._trained: list[tuple[dict[str, Tensor], Tensor]] = []

    def watch(self, log_probs: Tensor) -> None:
        """Take (n, t) log-probabilities of which a loss is about to be made, to see their weights in it."""

        def keep(gradient: Tensor) -> None:
            self._token_weights = gradient

        log_probs.register_hook(keep)

    def trained(self, part: dict[str, Tensor], log_probs: Tensor) -> None:
        """Take a part of TRL's batch with the policy's log-probabilities (n, t) before the step."""
        self._trained.append((part, log_probs))

    @contextmanager
    def rows(self, part: dict[str, Tensor]) -> Iterator[None]:
        """Within this context every row of a part of the batch has its own gradient, from which its score is made."""
        with self._bank.per_row(len(part["completion_ids"])) as rows:
            self._rows = rows, part["completion_mask"]
            yield
            self.take_scores()

    def take_scores(self) -> None:
        """Make the scores of the part at hand from what has flowed back so far: what comes later in `rows`, such as the
        gradient of the entropy, is no multiple of ∇ log π."""
        if self._rows is None:
            return
        (rows, mask), self._rows = self._rows, None
        if rows.grad is not None and self._token_weights is not None:
            self.optimizer.observe(completion_scores(rows.grad.flatten(1), self._token_weights, mask))
        self._token_weights = None

    def measure(self, log_probs_of: Callable[..., tuple[Tensor, Tensor]], mismatch: float) -> dict[str, float]:
        """The KL of the step just made beside the predicted one, nats a completion; corrects the predictions to come.

        log_probs_of: as `TinyLoRATrainer._log_probs_of_rows`. mismatch: k3 a token between engine and trainer, the
        noise of two computations of one policy. The sum over a completion's tokens of k3 is averaged over about
        `MEASURED_ROWS` rows, spread over the parts, which are sorted by length.
        """
        stride = -(-self.trained_rows // MEASURED_ROWS)
        return self.judged([self.sums(log_probs_of, stride)] if self.optimizer.last_predicted else [], mismatch)

    @property
    def trained_rows(self) -> int:
        """Rows of the parts that were trained since the last step was measured."""
        return sum(len(old) for _, old in self._trained)

    def forget(self) -> None:
        """Let go of the parts that were trained."""
        self._trained = []

    def sums(self, log_probs_of: Callable[..., tuple[Tensor, Tensor]], stride: int) -> tuple[float, int, int]:
        """Of every `stride`th row trained: the sum over tokens of k3 from before the step, how many rows, how many
        tokens."""
        trained, self._trained = self._trained, []
        total, rows, tokens = 0.0, 0, 0
        for part, old in trained:
            names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
            prompt_ids, prompt_mask, ids, mask = (part[name][::stride] for name in names)
            new, _ = log_probs_of(*packed_rows(prompt_ids, prompt_mask, ids, mask), old.shape[1])
            total += kl_k3(new - old[::stride], mask) * int(mask.sum())
            rows, tokens = rows + len(mask), tokens + int(mask.sum())
        return total, rows, tokens

    def judged(self, sums: list[tuple[float, int, int]], mismatch: float) -> dict[str, float]:
        """What `measure` tells, of one or several replicas' sums."""
        self.forget()
        rows = sum(count for _, count, _ in sums)
        if not rows:
            return {}
        total, tokens = sum(part for part, _, _ in sums), sum(count for _, _, count in sums)
        predicted = self.optimizer.last_predicted
        self.optimizer.measured(total / rows, mismatch * tokens / rows)
        found = {"step_kl": total / rows, "step_kl_predicted": predicted}
        return found | {"step_kl_correction": self.optimizer.correction}
