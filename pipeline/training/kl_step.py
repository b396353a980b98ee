"""The length of a step as a KL: Adam says where, the Fisher matrix of the scalars says how far.

With g = ∇_v log π(completion) and F = E[g gᵀ], the policy after a step s·d has KL(π ‖ π') = s²/2 dᵀ F d + O(s³)
(Kakade, "A Natural Policy Gradient", 2001; Schulman et al., arXiv 1502.05477). For a few dozen scalars F is tiny, and
the gradients of which it is made come with the training pass (`TinyLoRA.per_row`). So a step has a KL instead of a
learning rate, which means something else for every model, adapter and batch.

The pass tells apart what a completion's own tokens give, a, but of what flows back through a prompt that a group
shares, b, it only has the group's sum, weighted by the loss: B = Σ w b. Both are scores, of mean zero, and completions
are independent, so E[b bᵀ] = E[B Bᵀ] / Σ w². F is taken as E[a aᵀ] + E[b bᵀ]; the rest, E[a bᵀ] and its transpose, was
measured to be small (docs/decisions.md), and is left to the correction.

The direction stays Adam's. F is an average over steps with a multiple of the identity added: of fewer completions than
scalars it would know nothing of most directions. What the KL of a step really was corrects the next ones.

A direction that is mostly noise is not worth its KL. How much the gradients of groups differ tells the noise of Adam's
average m, so the share of signal in mᵀ F⁻¹ m is known, and the step is made shorter by it: the shrinkage of James and
Stein ("Estimation with Quadratic Loss", 1961). Steps are short while the average is young, longest while all groups
pull one way, and short again where little is left to gain, without a schedule.

F knows the policy as it is, not the edge that a step may go over. A step whose KL is measured as several times what a
step may have is taken back in part, as the line search of TRPO (arXiv 1502.05477, appendix C) does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapters import TinyLoRA
from pipeline.training.microbatch import prompts_and_completions
from pipeline.training.packing import Pack

MEASURED_ROWS = 32
MEMORY = 0.9  # of the averages of F and of KLs, per step
CORRECTION_LIMIT = 16.0
TOO_FAR = 3.0  # times step_kl: the measured KL of a step that is taken back in part
RETREATS = 4  # of one step at most
BLIND = 0.25  # of a step is tried next where the KL of all of it is no number
TRUST = 2.0  # steps' worth of KL as it was asked for, with which the sums of measured and predicted KL begin
SINGLE = 0.75  # of a single group's gradient is taken for noise, as nothing tells: a step has 1/16 of its KL
Sums = tuple[float, int, int]  # over completions: k3 of their tokens from before a step; how many, and their tokens


def completion_scores(row_gradients: Tensor, token_weights: Tensor) -> tuple[Tensor, Tensor]:
    """∇ log π of single completions (n, p) from what the loss gave for them, and the weight (n,) it gave them.

    row_gradients (n, p): ∂loss/∂v of each row. token_weights (n, t): ∂loss/∂ log p of each token, about the same for
    all of a row, whose mean is divided out; 0 for tokens that were clipped and for what is behind the end. Rows without
    a weight are zero.
    """
    mean = token_weights.sum(dim=1) / (token_weights != 0).sum(dim=1).clamp(min=1)
    return torch.where(mean == 0, 0.0, 1 / mean).unsqueeze(1) * row_gradients, mean


def group_scores(prompt_gradients: Tensor, weights: Tensor, draws: Tensor, groups: list[list[int]]) -> Tensor:
    """What F has of shared prompts: rows (m, p) whose sum of squares estimates Σ b bᵀ over the groups' completions.

    prompt_gradients (m, p): ∂loss/∂v through each group's prompt, Σ w b. weights (n,) of distinct completions, and how
    often (n,) each was drawn. groups: the completions of each.
    """
    if not groups:
        return prompt_gradients
    sizes = torch.stack([draws[rows][weights[rows] != 0].sum() for rows in groups])
    squares = torch.stack([weights[rows].square().sum() for rows in groups])
    return torch.where(squares > 0, (sizes / squares).sqrt(), 0.0).unsqueeze(1) * prompt_gradients


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


def signal_share(average: Tensor, noise: float, fisher: Tensor) -> float:
    """The share of averageᵀ F⁻¹ average that is not noise, 0 to 1; average (p,), fisher (p, p).

    noise: what the average would have without any signal, E[εᵀ F⁻¹ ε].
    """
    whole = float(average @ torch.linalg.solve(fisher, average))
    return max(0.0, 1 - noise / whole) if whole > 0 else 0.0


def group_sums(gradients: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The sums (m, p) of the rows (n, p) of each group, and the groups' numbers (m,)."""
    names, group = torch.unique(groups, return_inverse=True)
    return gradients.new_zeros(len(names), gradients.shape[1]).index_add(0, group, gradients), names


def group_noise(gradients: Tensor, groups: Tensor, fisher: Tensor) -> float:
    """E[εᵀ F⁻¹ ε] of the sum of row gradients (n, p): what independent groups (n,) of rows, by their differences, let
    it vary by. A single group differs from no other: `SINGLE` of its square. fisher (p, p)."""
    sums, names = group_sums(gradients, groups)
    count = len(names)
    differences = math.sqrt(count / (count - 1)) * (sums - sums.mean(dim=0)) if count > 1 else math.sqrt(SINGLE) * sums
    return float((differences * torch.linalg.solve(fisher, differences.mT).mT).sum())


class Observed(NamedTuple):
    """What a step is made with beside the gradient: scores (n, p) of `completions`, and the sums of ∂loss/∂v (m, p) of
    the groups with these numbers (m,)."""

    scores: Tensor
    completions: int
    gradients: Tensor
    groups: Tensor


class KLAdam(torch.optim.Optimizer):
    """Adam whose steps have a predicted KL of `step_kl` nats a completion, times the square of lr (the schedule's
    factor) and of the share of signal.

    One parameter, of p numbers in all. Before each step `observe` takes the completions' scores; without any the step
    is left out. `last_length` is the factor that stood in the learning rate's place, `last_predicted` the step's KL,
    `last_signal` the share of signal.
    """

    def __init__(self, parameters: Iterable[Tensor], step_kl: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__(parameters, {"lr": 1.0, "betas": betas, "eps": 1e-12, "step_kl": step_kl})
        self.last_length = self.last_predicted = self.last_signal = 0.0
        self._last_step: Tensor | None = None
        self._scores: list[Tensor] = []
        self._count = 0
        self._gradients: list[tuple[Tensor, Tensor]] = []

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
            state |= {"step": torch.tensor(0.0), "count": torch.tensor(0.0)}
        start = TRUST * self.param_groups[0]["step_kl"]
        for name, value in (("noise", 0.0), ("measured", start), ("predicted", start)):
            state.setdefault(name, torch.tensor(value))  # checkpoints of earlier versions have none
        return state

    @property
    def correction(self) -> float:
        """What ½ dᵀFd is multiplied with: the mean KL of past steps as measured over the mean as predicted without it.
        Single measurements are off by a factor of ten, since few tokens make most of a KL, but their mean is right."""
        state = self._kept()
        ratio = float(state["measured"] / state["predicted"])
        return min(CORRECTION_LIMIT, max(1 / CORRECTION_LIMIT, ratio))

    def observe(self, scores: Tensor, count: int) -> None:
        """Take scores (n, p) of the step to come, in one call or several: F is the sum of their squares over the number
        of completions `count`."""
        self._scores.append(scores.detach().float())
        self._count += count

    def observe_gradients(self, gradients: Tensor, groups: Tensor) -> None:
        """Take ∂loss/∂v of rows (n, p) and the numbers of their groups (n,), in one call or several."""
        self._gradients.append((gradients.detach().float(), groups))

    def take_observed(self) -> Observed:
        """What was taken for the step to come, of this optimizer or of another's; nothing is left."""
        parts, self._scores = self._scores, []
        count, self._count = self._count, 0
        gradients, self._gradients = self._gradients, []
        none = self.parameter.detach().new_zeros(0, self.parameter.numel()).float()
        numbers = torch.zeros(0, dtype=torch.long, device=none.device)
        of_groups = torch.cat([none, *(rows for rows, _ in gradients)])
        groups = torch.cat([numbers, *(numbers_of for _, numbers_of in gradients)])
        return Observed(torch.cat([none, *parts]), count, *group_sums(of_groups, groups))

    def measured(self, kl: float, noise: float) -> None:
        """Take what the KL of the last step was, in nats a completion, and the noise that is part of that number."""
        state, predicted = self._kept(), self.last_predicted / self.correction
        state["measured"].mul_(MEMORY).add_(max(0.0, kl - noise))
        state["predicted"].mul_(MEMORY).add_(predicted)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group, state, v = self.param_groups[0], self._kept(), self.parameter
        observed = self.take_observed()
        scores, count = observed.scores, observed.completions
        self.last_length = self.last_predicted = self.last_signal = 0.0
        if v.grad is None or not count:
            return
        state["fisher"].mul_(MEMORY).add_(scores.mT @ scores / count, alpha=1 - MEMORY)
        state["count"].mul_(MEMORY).add_(count)
        state["step"] += 1
        steps, (beta1, beta2) = float(state["step"]), group["betas"]
        state["exp_avg"].lerp_(v.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(v.grad, v.grad, value=1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt().add_(group["eps"])
        direction = (state["exp_avg"] / (1 - beta1**steps) / scale).flatten()
        fisher = ridged_fisher(state["fisher"] / (1 - MEMORY**steps), float(state["count"]))
        cost = predicted_kl(direction, fisher) * self.correction
        if not (math.isfinite(cost) and cost > 0):
            return
        state["noise"].mul_(beta1**2).add_((1 - beta1) ** 2 * self._noise(observed, fisher))
        self.last_signal = signal_share(state["exp_avg"].flatten(), float(state["noise"]), fisher)
        self.last_length = self.last_signal * group["lr"] * math.sqrt(group["step_kl"] / cost)
        self.last_predicted = self.last_length**2 * cost
        self._last_step = -self.last_length * direction.view_as(v)
        v.add_(self._last_step)

    @torch.no_grad()
    def shorten(self, share: float) -> None:
        """Take the last step back but for this share of it."""
        assert self._last_step is not None
        self.parameter.sub_((1 - share) * self._last_step)
        self._last_step *= share
        self.last_length *= share
        self.last_predicted *= share**2

    def _noise(self, observed: Observed, fisher: Tensor) -> float:
        """`group_noise` of the parameter's gradient, the groups' sum but for clipping and what else was added."""
        total, final = observed.gradients.sum(dim=0), self.parameter.grad.flatten()  # type: ignore[union-attr]
        scale = float(final @ total / (total @ total).clamp(min=torch.finfo(total.dtype).tiny))
        return scale**2 * group_noise(observed.gradients, observed.groups, fisher)


class StepLength:
    """The steps of one trainer: what the optimizer is told before each, and what its KL was after it."""

    def __init__(self, bank: TinyLoRA, step_kl: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.optimizer = KLAdam([bank.v], step_kl, betas)
        self._bank = bank
        self._rows: tuple[Tensor, Pack, dict[str, Tensor]] | None = None  # copies of `v`, pack, the part at hand
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
    def rows(self, pack: Pack, part: dict[str, Tensor]) -> Iterator[None]:
        """Within this context every completion and every shared prompt of a part of the batch has a gradient of its
        own, of which scores are made. part: with `group`, the numbers (B,) of the completions' groups, and `draws`
        (B,), how often each was drawn; what the policy draws alike counts as often in its KL."""
        with self._bank.per_row(pack.owners, pack.count) as rows:
            self._rows = rows, pack, part
            yield
            self.take_scores()

    def take_scores(self) -> None:
        """Make the scores of the part at hand from what has flowed back so far: what comes later in `rows`, the
        gradients of the entropy and of the KL to the base, is no multiple of ∇ log π."""
        if self._rows is None:
            return
        (rows, pack, part), self._rows = self._rows, None
        if rows.grad is not None and self._token_weights is not None:
            gradients, count, groups, draws = rows.grad.flatten(1), len(pack.lengths), part["group"], part["draws"]
            own, weights = completion_scores(gradients[:count], self._token_weights)
            shared = group_scores(gradients[count:], weights, draws, pack.groups)
            scores = torch.cat([draws.sqrt().unsqueeze(1) * own, shared])
            self.optimizer.observe(scores, int(draws[weights != 0].sum()))
            of_prompts = [groups[members[0]] for members in pack.groups]
            self.optimizer.observe_gradients(gradients.clone(), torch.stack([*groups, *of_prompts]))
        self._token_weights = None

    @property
    def trained_rows(self) -> int:
        """Rows of the parts that were trained since the last step was measured."""
        return sum(len(old) for _, old in self._trained)

    def forget(self) -> None:
        """Let go of the parts that were trained."""
        self._trained = []

    def measure(
        self,
        log_probs_of: Callable[..., tuple[Tensor, Tensor]],
        mismatch: float,
        elsewhere: int = 0,
        sums_of: Callable[[int, Callable[[], Sums]], list[Sums]] = lambda stride, own: [own()],
    ) -> dict[str, float]:
        """The KL of the step just made beside the predicted one, nats a completion, and the share of the step that was
        kept (`TOO_FAR`); corrects the predictions to come.

        log_probs_of: as `TrainingPass._log_probs_of`. mismatch: k3 a token between engine and trainer, the
        noise of two computations of one policy. The sum over a completion's tokens of k3 is averaged over about
        `MEASURED_ROWS` rows, spread over the parts. elsewhere: rows that other replicas trained; sums_of(stride, own)
        gives the sums of all, `own()` being this process's.
        """
        trained, predicted = self.trained_rows + elsewhere, self.optimizer.last_predicted
        if not trained:
            return {}
        if not predicted:
            self.forget()
            return {"step_signal": self.optimizer.last_signal}
        stride = -(-trained // MEASURED_ROWS)

        def kl_of_step() -> tuple[float, float]:
            parts = sums_of(stride, lambda: self.sums(log_probs_of, stride))
            total, rows, tokens = (sum(column) for column in zip(*parts, strict=True))
            return (total / rows, mismatch * tokens / rows) if rows else (math.nan, 0.0)  # who trained them was lost

        kl, noise = kl_of_step()
        longest, kept = float(self.optimizer.param_groups[0]["step_kl"]), 1.0
        for _ in range(RETREATS):
            if not kl - noise > TOO_FAR * longest:
                break
            share = math.sqrt(longest / (kl - noise)) if math.isfinite(kl) else BLIND
            self.optimizer.shorten(share)
            kept *= share
            kl, noise = kl_of_step()
        if math.isinf(kl):  # nothing of it can be kept; the next ones are shorter
            self.optimizer.shorten(0.0)
            kl, noise, kept = TOO_FAR * longest, 0.0, 0.0
        self.forget()
        found = {"step_kl_predicted": self.optimizer.last_predicted, "step_signal": self.optimizer.last_signal}
        if math.isnan(kl):
            return found
        self.optimizer.measured(kl, noise)
        return found | {"step_kl": kl, "step_kept": kept, "step_kl_correction": self.optimizer.correction}

    def sums(self, log_probs_of: Callable[..., tuple[Tensor, Tensor]], stride: int) -> Sums:
        """Of every `stride`th row trained here, as often as it was drawn; infinite where one has no number any more."""
        total, rows, tokens = 0.0, 0, 0
        for part, old in self._trained:
            mask, draws = part["completion_mask"][::stride], part["draws"][::stride]
            new, _ = log_probs_of(*prompts_and_completions(part, slice(None, None, stride)), old.shape[1])
            difference = (new - old[::stride]).masked_fill(mask == 0, 0.0)
            of_rows = (torch.expm1(difference) - difference).nan_to_num(nan=math.inf, posinf=math.inf).sum(dim=1)
            total += float((draws * of_rows).sum())
            rows, tokens = rows + int(draws.sum()), tokens + int(draws @ mask.sum(dim=1).to(draws.dtype))
        return total, rows, tokens
