"""The page of all options is the one that the declarations give."""

from __future__ import annotations

import importlib

import pytest

from pipeline.config import Settings
from pipeline.tools import options
from storage.settings import declared


def test_the_page_is_up_to_date() -> None:
    assert options.PAGE.read_text(encoding="utf-8") == options.page(), "run `make options`"


@pytest.mark.parametrize("script", ["train", "eval", "sft", "prepare_data"])
def test_the_page_has_every_option_of_a_command(script: str) -> None:
    """But for those that choose what a command does with its settings."""
    own = {"--config", "--resume", "--dry-run", "--help"} if script == "train" else {"--help"}
    begin = options.page().index(f"## {script}.py")
    section = options.page()[begin:].split("\n## ")[0]
    parameters = importlib.import_module(script).main.params
    names = {name for p in parameters for name in (*p.opts, *p.secondary_opts) if name.startswith("--")} - own
    assert names and all(f"`{name}`" in section for name in names if not name.startswith("--no-"))


def test_every_setting_says_what_it_is() -> None:
    for setting in declared(Settings):
        assert setting.sentence.endswith(".") and len(setting.sentence) > 10, setting.name
