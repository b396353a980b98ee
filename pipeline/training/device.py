"""The GPU's clock and memory as this process sees them; both answer at once on a machine without one."""

from __future__ import annotations

import torch


def wait_for_device() -> None:
    """GPU work is asynchronous: seconds are read after it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> float | None:
    """Peak GB of the card in use since the last call: torch's allocator, and all that lies outside it, which is this
    process's own where it has the card for itself."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    peak = torch.cuda.max_memory_reserved() + outside
    torch.cuda.reset_peak_memory_stats()
    return round(peak / 1e9, 3)
