"""Triton kernels of the adapter: `merge` writes W + ΔW, `skinny` multiplies by factors, `lowrank` adds the update."""
