"""How far the policy that is trained is from the one that drew the tokens it is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.logprobs import kl_k3
from pipeline.training.trl_hooks import RATIO_CAP


class Distance(NamedTuple):
    """kl: k3 in nats a token, mean over `tokens`. cut: the share of them whose importance ratio was cut."""

    kl: float = 0.0
    cut: float = 0.0
    tokens: int = 0

    @classmethod
    def of(cls, differences: Sequence[Tensor]) -> Distance:
        """Of tensors (n,) of log p of sampled tokens by the policy that is trained less that by who drew them."""
        if not differences:
            return cls()
        every = torch.cat(list(differences))
        cut = float((every > math.log(RATIO_CAP)).float().mean())
        return cls(kl_k3(every, torch.ones_like(every)), cut, len(every))

    @classmethod
    def merged(cls, parts: Sequence[tuple[float, float, int]]) -> Distance:
        """Of all tokens of these parts."""
        tokens = sum(count for _, _, count in parts)
        kl, cut = (sum(part[index] * part[2] for part in parts) / max(1, tokens) for index in (0, 1))
        return cls(kl, cut, tokens)
