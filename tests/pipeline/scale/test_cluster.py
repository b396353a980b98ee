"""Ray as this project starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import os, ray
from pipeline.scale.cluster import start_ray, stop_ray

class Actor:
    def niceness(self):
        return os.getpriority(os.PRIO_PROCESS, 0)

folder = start_ray(num_cpus=1, num_gpus=0)
print(ray.get(ray.remote(Actor).remote().niceness.remote()) - os.getpriority(os.PRIO_PROCESS, 0))
stop_ray(folder)
print(folder.exists())
"""


@pytest.mark.integration
def test_actors_get_as_much_of_a_core_as_the_driver() -> None:
    pytest.importorskip("ray")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.split() == ["0", "False"], done.stdout + done.stderr[-3000:]


@pytest.mark.integration
def test_more_replicas_than_cores_are_refused() -> None:
    pytest.importorskip("ray")
    many = len(os.sched_getaffinity(0)) + 1
    code = f"""
from pipeline.config import ConfigError, Settings, resolved
from pipeline.scale.cluster import RayLauncher
try:
    RayLauncher(resolved(Settings(dataset="x", replicas="{many}"), starter=True, gpu=False), object)
except ConfigError as error:
    print(error)
"""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment
    )
    assert f"--replicas {many}: every replica needs a CPU, and there are {many - 1}" in done.stdout, done.stderr[-3000:]
