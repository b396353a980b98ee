"""Importing this puts the repository's root on `sys.path`, so that a script runs from any folder without
installation."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
