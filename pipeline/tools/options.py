"""`docs/options.md`, made from the settings as they are declared: `make options` writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data.settings import Preparation
from pipeline.config import Settings
from pipeline.config.evaluation import FROM_A_RUN, EvalSettings
from pipeline.config.warm_up import WarmUp
from storage.files import write_text
from storage.settings import Setting, declared

PAGE = Path(__file__).resolve().parents[2] / "docs" / "options.md"
HEAD = """# Options

Made by `make options` from the settings as the code declares them. What an empty default stands for is said in the last
column; where nothing is said, the model decides: see `PRESETS` in `pipeline/config/run_config.py`. In a file for
`--config` the names have no dashes in front, and may have dashes or underscores.
"""
TABLE = "| option | values | default | |\n|---|---|---|---|\n"


def page() -> str:
    """The whole page, in Markdown."""
    told = f"It also takes these options of `train.py`, which then replace those of the run: {_names(FROM_A_RUN)}.\n"
    parts = [HEAD, "## train.py\n", TABLE + rows(declared(Settings))]
    parts += ["## eval.py\n", TABLE + rows(declared(EvalSettings)), told]
    parts += ["## sft.py\n", TABLE + rows(declared(WarmUp))]
    parts += ["## prepare_data.py\n", TABLE + rows(s for s in declared(Preparation) if s.name != "source")]
    return "\n".join(parts)


def rows(settings: Iterable[Setting]) -> str:
    return "".join(_row(setting) for setting in settings)


def _row(setting: Setting) -> str:
    default = "" if setting.default in (None, ()) else f"`{str(setting.default).lower()}`"
    flag = ", ".join(f"`{name}`" for name in setting.flag.replace("/", " ").split())
    return f"| {flag} | {_values(setting)} | {'required' if setting.required else default} | {setting.sentence} |\n"


def _values(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    kind = {bool: "", int: "integer", float: "number", str: "text"}[setting.type]
    return ", ".join([kind, *setting.bounds])


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{setting.option}`" for setting in declared(Settings, names))


if __name__ == "__main__":
    write_text(PAGE, page())
