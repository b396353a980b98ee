"""The policy at a vector v, computed apart from trainer and engine: what both of them are measured against.

A plain transformers model in float32, its adapted matrices W + U Σ (Σ v_i P_i) Vᵀ formed in float64. Of the adapter
only its definition is used: v, the projections P, and the right singular vectors Vᵀ, because a singular pair's sign is
a choice. U Σ is W V, from the frozen matrix. No merge, no kernel and no served tensor of the run takes part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ExactPolicy:
    """`location`: folder of the unquantised checkpoint. `model`: the trainer's, on whose device this one is kept. Where
    that holds a matrix in 4 bits, the base is what the library that packed it makes of it, else the checkpoint's."""

    def __init__(self, location: str, model: Any) -> None:
        from transformers import AutoModelForCausalLM

        self.bank = model.tinylora
        device = self.bank.v.device
        self.model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32, device_map=device).eval()
        self.model.config.use_cache = False
        self.frozen = [
            self._base(name, layer.base_layer.weight)
            for name, layer in zip(self.bank.names, self.bank.layers, strict=True)
        ]
        self.move_to(torch.zeros_like(self.bank.v))

    def _base(self, name: str, weight: Any) -> Tensor:
        own = self.model.get_submodule(name).weight.detach()
        if getattr(weight, "quant_state", None) is None:
            return own.clone()
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).reshape(own.shape)

    @torch.no_grad()
    def move_to(self, v: Tensor) -> None:
        """Make the model that of `v` (groups, u)."""
        config, count = self.bank.config, len(self.frozen)
        for index, (name, layer, frozen) in enumerate(zip(self.bank.names, self.bank.layers, self.frozen, strict=True)):
            weight, right = frozen.double(), layer.right.double()
            mixing = torch.einsum("u,urs->rs", v[config.group_of(index, count)].double(), layer.projections.double())
            updated = weight + weight @ right.mT @ mixing @ right
            self.model.get_submodule(name).weight.copy_(updated)

    @torch.no_grad()
    def log_probs(self, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
        """Log-probabilities at temperature 1 of all completion tokens, one row after another, (tokens,) float32."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        values = []
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = torch.tensor([prompt + completion], device=self.bank.v.device)
            logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            tokens = ids[0, len(prompt) :].unsqueeze(-1)
            values.append(torch.log_softmax(logits, dim=-1).gather(-1, tokens).squeeze(-1))
        torch.set_float32_matmul_precision(before)
        return torch.cat(values)
