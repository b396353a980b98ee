"""All that leans on private parts of TRL, written for trl 1.15: `GRPOTrainer` with our rollouts and log-probabilities.

Of `trl.GRPOTrainer`, undocumented:

    _generate_and_score_completions   replaced: `roll_out` gives the batch, which TRL takes as tensors
    _prepare_inputs                   called: asks for a batch every `num_iterations` steps and shuffles its rows
    _step                             set: by it `_prepare_inputs` knows when to ask, in a resumed run, too
    _compute_loss                     called: the loss of a part of the batch, with the KL term and without
    _get_per_token_logps_and_entropies  replaced: hands `_compute_loss` the log-probabilities that we computed
    _metrics                          written and read: TRL's charts, and how much of the loss was clipped
    _tokenizer, eos_token_ids         read: what ends a completion
    use_vllm                          set: the importance ratio between engine and trainer is a factor of the loss
    beta                              set after construction, else TRL would load a second model for the KL term

Of `transformers.Trainer`: `_save`, `_save_checkpoint`, `_get_output_dir` and `_load_from_checkpoint` are replaced in
`trainer.py`, and `model._hf_peft_config_loaded` is set here.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from pipeline.policy.loading import Policy
from pipeline.rollout.rollouts import Rollouts, padded
from pipeline.training.advantages import known_deviation, reward_tensor

WEIGHTS = "tokens or rows of parts"  # among the charts: what those of a loss are weighed with
RATIO_CAP = 2.0  # truncation of the importance ratio between trainer and engine, per token
EXPECTED = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_compute_loss": ["self", "model", "inputs"],
    "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
}


def check_trl() -> None:
    """Fail with a name, not with wrong gradients, when TRL changes what is used here."""
    for name, parameters in EXPECTED.items():
        found = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[: len(parameters)]
        if found != parameters:
            raise RuntimeError(f"TRL's GRPOTrainer.{name} changed ({found}); this project is written for trl 1.15")


def rewarded_by_us(**_: Any) -> list[float]:
    """TRL wants a reward function. It is never called: the rollouts come with their rewards."""
    raise RuntimeError("TRL rewards nothing here")


class RolloutTrainer(GRPOTrainer):
    """TRL's trainer as a loss and an optimizer loop; what it trains on is `roll_out`'s, how is `train_on`'s."""

    def __init__(self, policy: Policy, arguments: GRPOConfig, rows: Any, beta: float) -> None:
        check_trl()
        policy.model._hf_peft_config_loaded = True  # transformers refuses to train a quantised model without adapters
        super().__init__(
            model=policy.model,
            reward_funcs=[rewarded_by_us],
            args=arguments,
            train_dataset=rows,
            processing_class=policy.tokenizer,
        )
        policy.model._hf_peft_config_loaded = False
        self.remove_callback(PrinterCallback)
        self.use_vllm = True
        self.beta = beta
        self._given: tuple[Tensor, Tensor] | None = None

    def roll_out(self, problems: list[int]) -> Rollouts:
        """A batch for the problems of TRL's rows, each `num_generations` times, one after another."""
        raise NotImplementedError

    def train_on(self, batch: dict[str, Any]) -> Tensor:
        """Add the gradient of a batch, or of a part of one, as TRL's tensors; returns its loss."""
        raise NotImplementedError

    def judged(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The batch, or parts of it as their verdicts come; the normalisers of a part are those of the whole."""
        yield batch

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens with which a completion that was not cut ends."""
        return (*self.eos_token_ids, self._tokenizer.pad_token_id)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        self._step = self.state.global_step
        losses = [self.train_on(part) for part in self.judged(self._prepare_inputs(inputs))]
        return torch.stack(losses).sum()

    def policy_losses(self, part: dict[str, Any], log_probs: Tensor, entropies: Tensor) -> list[Tensor]:
        """TRL's loss of a part of the batch, with (n, T) log-probabilities that carry the gradient, and entropies; and
        apart from it the penalty on the KL to the base, where there is one. A part without old log-probabilities is
        trained once: there, old and new are one, whoever drew it. The importance ratio is to the policy that drew. So a
        batch drawn ahead has the decoupled loss of AReaL (arXiv 2505.24298), whose proximal policy is the one that is
        trained."""
        if "old_per_token_logps" not in part:
            old = log_probs.detach()
            part = part | _of_old(old, part["sampling_per_token_logps"])
        self._given = log_probs, entropies
        losses = [super()._compute_loss(self.model, part)]
        if self.beta:
            charts, beta = self._metrics["train"], self.beta
            self.beta, self._metrics["train"] = 0.0, defaultdict(list)  # charted once is enough
            policy = super()._compute_loss(self.model, part)
            self.beta, self._metrics["train"] = beta, charts
            losses = [policy, losses[0] - policy]
        self._given = None
        rows = self.importance_sampling_level == "sequence"  # each of which has one ratio, and may be clipped
        self._metrics["train"][WEIGHTS].append(float(len(log_probs) if rows else part["completion_mask"].sum()))
        return losses

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: Any, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        assert self._given is not None, "TRL computes no log-probabilities here"
        return (*self._given, None)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rollouts = self.roll_out([row["problem"] for row in inputs])
        return trl_batch(rollouts, self._tokenizer.pad_token_id, self.accelerator.device)

    def averages(self) -> dict[str, float]:
        """TRL's charts since the last step that was logged, those of a loss over the trained tokens (of GSPO: rows) of
        all parts. Its entropy is left out, being of trained rows only."""
        charts = self._metrics["train"]
        charts.pop("entropy", None)
        weights = charts.pop(WEIGHTS, [])
        return {name: _mean(values, weights) for name, values in charts.items() if values}

    def chart(self, rollouts: Rollouts) -> None:
        """What TRL itself would have charted of the batch."""
        lengths = torch.tensor([len(completion.token_ids) for completion in rollouts.completions]).float()
        cut = torch.tensor([completion.token_ids[-1] not in self.ends for completion in rollouts.completions])
        ended = lengths[~cut] if not cut.all() else torch.zeros(1)
        self.state.num_input_tokens_seen += sum(map(len, rollouts.prompts)) + int(lengths.sum())
        rewards = reward_tensor(rollouts.totals)
        groups = rewards if self.scale_rewards == "batch" else rewards.view(-1, rollouts.group_size)
        deviations = known_deviation(groups)
        charts = {
            "num_tokens": self.state.num_input_tokens_seen,
            "completions/clipped_ratio": cut.float().mean(),
            "reward": rewards.nanmean(),
            "reward_std": known_deviation(rewards),
            "frac_reward_zero_std": torch.isclose(deviations, torch.zeros_like(deviations)).float().mean(),
        }
        for name, values in (("length", lengths), ("terminated_length", ended)):
            for kind, value in (("mean", values.mean()), ("min", values.min()), ("max", values.max())):
                charts[f"completions/{kind}_{name}"] = value
        for name, values in rollouts.scores.items():
            part = reward_tensor(values)
            charts |= {f"rewards/{name}/mean": part.nanmean(), f"rewards/{name}/std": known_deviation(part)}
        for name, value in charts.items():
            self._metrics["train"][name].append(float(value))


def _mean(values: Sequence[float], of_parts: Sequence[float]) -> float:
    """Of what was charted for every part of a batch, by the parts' weights; of anything else, once for each."""
    weights = of_parts if len(values) == len(of_parts) and any(of_parts) else [1.0] * len(values)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def trl_batch(rollouts: Rollouts, pad: int, device: torch.device) -> dict[str, Any]:
    """The batch as TRL's loss takes it, on `device`. Prompts (B, P) are padded on the left, all else (B, T) on the
    right; `row` and `group` (B,) number rows and groups, since TRL shuffles the rows."""
    ones = [[1] * len(prompt) for prompt in rollouts.prompts]
    mask = rollouts.mask()
    batch = {
        "prompt_ids": padded(rollouts.prompts, pad, left=True),
        "prompt_mask": padded(ones, 0, left=True),
        "completion_ids": padded([completion.token_ids for completion in rollouts.completions], pad),
        "completion_mask": mask,
        "advantages": torch.tensor(rollouts.advantages),
        "num_items_in_batch": mask.sum(),
        "num_rows_in_batch": torch.tensor(len(rollouts)),
        "sampling_per_token_logps": rollouts.sampled_log_probs(),
        "row": torch.arange(len(rollouts)),
        "group": torch.arange(len(rollouts)) // rollouts.group_size,
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    if rollouts.base_log_probs is not None:
        batch["ref_per_token_logps"] = rollouts.base_log_probs.to(device)
    if rollouts.old_log_probs is not None:
        batch |= _of_old(rollouts.old_log_probs.to(device), batch["sampling_per_token_logps"])
    return batch


def _of_old(old: Tensor, sampled: Tensor) -> dict[str, Tensor]:
    """The log-probabilities of the policy that drew, and the importance ratio between trainer and engine, truncated."""
    return {"old_per_token_logps": old, "importance_sampling_ratio": (old - sampled).exp().clamp(max=RATIO_CAP)}
