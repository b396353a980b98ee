"""What the commands share: options made from declared settings, and errors of the user answered with one sentence."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
import repo_root  # noqa: F401

from storage.errors import UserError
from storage.settings import Setting, declared


def options(group: type, names: Iterable[str] | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds one option for each setting of a group, or for those with these names. What is not given
    does not reach the group: see `given`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for setting in reversed(list(declared(group, names))):
            command = click.option(*setting.flag.split(), setting.name, **_form(setting))(command)
        return command

    return decorate


def _form(setting: Setting) -> dict[str, Any]:
    shown = setting.default is not None and setting.default != () and setting.type is not bool
    default = f"  [default: {setting.default}]" if shown else ""
    form: dict[str, Any] = {"type": setting.type, "default": None, "help": setting.sentence + default}
    if setting.choices:
        form["metavar"] = f"[{'|'.join(setting.choices)}]"
    return form | {"required": setting.required, "multiple": setting.repeats}


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that stand on the command line."""
    return {name: value for name, value in options.items() if value not in (None, ())}


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turn an error of the user into one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
