"""The installed project: `tinylora-NAME` is `python scripts/NAME.py`.

A wheel holds the project's folders inside this package, because names as common as `data` and `scripts` do not belong
in everybody's site-packages. Importing it puts them on `sys.path`, as the scripts do, so that this works:

    import tinylora_coder
    from rewards.code import CodeReward
"""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE if (HERE / "scripts").is_dir() else HERE.parent  # of a wheel, or of the repository
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def run_command() -> None:
    """Run the script that this process is named after: `tinylora-make-shape` runs `scripts/make_shape.py`."""
    sys.path.insert(0, str(ROOT / "scripts"))
    runpy.run_module(Path(sys.argv[0]).name.removeprefix("tinylora-").replace("-", "_"), run_name="__main__")
