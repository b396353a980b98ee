"""Ray as this project starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import os, ray
from pipeline.scale.cluster import start_ray

class Actor:
    def niceness(self):
        return os.getpriority(os.PRIO_PROCESS, 0)

start_ray(num_cpus=1, num_gpus=0)
print(ray.get(ray.remote(Actor).remote().niceness.remote()) - os.getpriority(os.PRIO_PROCESS, 0))
ray.shutdown()
"""


@pytest.mark.integration
def test_actors_get_as_much_of_a_core_as_the_driver() -> None:
    pytest.importorskip("ray")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.split() == ["0"], done.stdout + done.stderr[-3000:]
