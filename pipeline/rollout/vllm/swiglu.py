"""Our kernel for vLLM's SwiGLU, by vLLM's own way to exchange an operation."""

from __future__ import annotations

from torch import Tensor
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.activation import SiluAndMul

from adapters.kernels.swiglu import swiglu


def register_swiglu() -> None:
    """Engines built from now on have it; safe to call again."""
    if SiluAndMul.__name__ in op_registry_oot:
        return

    @SiluAndMul.register_oot(name=SiluAndMul.__name__)
    class SwiGLU(SiluAndMul):
        def forward_cuda(self, x: Tensor) -> Tensor:
            return swiglu(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
