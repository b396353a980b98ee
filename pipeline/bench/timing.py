"""Seconds of work on a device, measured alike everywhere: medians of repeated runs, ended by a synchronisation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def device_seconds(work: Callable[[], Any], repeats: int = 10, warm_up: int = 3) -> float:
    """Median seconds of `work`, the device idle before and after; on a GPU by its own clock."""
    import torch

    gpu = torch.cuda.is_available()
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(repeats):
        if not gpu:
            seconds.append(once(work))
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return statistics.median(seconds)


def once(work: Callable[[], Any]) -> float:
    """Seconds of one run of `work`, with what it started on a GPU finished."""
    from pipeline.training.device import wait_for_device

    wait_for_device()
    began = time.perf_counter()
    work()
    wait_for_device()
    return time.perf_counter() - began
