"""Two replicas of the starter for real, through Ray, one of which is killed; twenty kills in every phase with

python tests/pipeline/scale/kill_replicas.py FOLDER --kills 20

kills of the driver, each followed by --resume, with

python tests/pipeline/scale/kill_driver.py FOLDER --kills 6

and a cluster of two hosts, one of which dies, with

python tests/pipeline/scale/two_hosts.py FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.policy.models import STARTER_FOLDER

ROOT = Path(__file__).resolve().parents[3]
KILLS = os.environ.get("TINYLORA_KILLS", "1")


def test_one_replica_and_help_never_import_ray() -> None:
    code = "import sys; import pipeline.training.run, pipeline.evaluation.run, pipeline.tools.doctor; "
    done = subprocess.run(
        [sys.executable, "-c", code + "from pipeline.scale.start import launching; print('ray' in sys.modules)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.split()[-1] == "False", done.stderr


@pytest.mark.integration
@pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="no starter model (scripts/make_starter.py)")
def test_a_killed_replica_comes_back_and_no_completion_is_missing(tmp_path: Path) -> None:
    script = str(ROOT / "tests/pipeline/scale/kill_replicas.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path), "--kills", KILLS, "--steps", "6"],
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == int(KILLS) and done.stderr.count("was taken out") == int(KILLS)
    assert done.stderr.count(" joined after") >= 1 + len(result["runs"])
