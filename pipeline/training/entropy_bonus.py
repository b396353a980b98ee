"""A bonus for the entropy of the policy: the loss less `coefficient` times its mean over all tokens of the batch.

TRL has one, too, but takes the mean over what it is given, which here is a part of the batch, and leaves rows without
an advantage to the trainer, which leaves them out.
"""

from __future__ import annotations

from torch import Tensor


def entropy_loss(entropies: Tensor, mask: Tensor, tokens: int, coefficient: float) -> Tensor:
    """The part that these rows have in −coefficient · H, a scalar. entropies, mask (n, t) of a part of the batch, in
    nats; tokens: of the whole batch."""
    return -coefficient * (entropies * mask).sum() / max(1, tokens)
