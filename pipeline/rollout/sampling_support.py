"""Top-k and top-p as a truncated and renormalised distribution, the same one for whoever samples and whoever trains.

The support of a place is what the policy itself gives there: the k likeliest tokens, and of these the fewest whose
renormalised mass reaches p (Holtzman et al., arXiv 1904.09751). Engine and trainer each take it from their own logits,
so no set of tokens travels. Where these differ in their last bits, a token at the edge may be in on one side only; the
sampled token is always in the trainer's support, so that its log-probability is finite and the importance ratio between
both sides makes up for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = -1e30  # the score of a token that cannot be drawn; finite, so that p log p is 0 and not NaN


@dataclass(frozen=True, slots=True)
class Truncation:
    """top_k: how many tokens can be drawn, 0 for all. top_p: mass that they hold at least, 1 for all. False where
    nothing is left out."""

    top_k: int = 0
    top_p: float = 1.0

    def __bool__(self) -> bool:
        return self.top_k > 0 or self.top_p < 1

    def edges(self, scores: Tensor) -> Tensor:
        """(n, 1): the lowest score in the support of every row of scores (n, vocabulary) at the temperature."""
        if self.top_k:
            ordered = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1).values
        else:
            ordered = scores.sort(dim=-1, descending=True).values
        if self.top_p >= 1:
            return ordered[:, -1:]
        mass = ordered.softmax(dim=-1)
        above = mass.cumsum(dim=-1) - mass  # of what is likelier; 0 for the first, which is always in
        return ordered.gather(-1, (above < self.top_p).sum(dim=-1, keepdim=True).clamp(min=1) - 1)

    def of(self, scores: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Scores (n, vocabulary) with `OUTSIDE` where they are out of the support, to which `drawn` (n,) is added.

        Equal scores are in or out together."""
        inside = scores >= self.edges(scores)
        if drawn is not None:
            inside.scatter_(-1, drawn.unsqueeze(-1), True)
        return scores.masked_fill(~inside, OUTSIDE)


WHOLE = Truncation()
