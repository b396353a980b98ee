"""Triton kernels: `merge` writes W + ΔW, `skinny` multiplies by factors, `lowrank` adds the update, `residual` adds and
norms, `sampling` draws tokens."""
