"""Check this machine: driver, versions, compiler, sandbox, disk, hub; load the model, generate, grade, refresh.

Prints one table with what to do about each failure. The exit code is 1 if anything failed.
"""

from __future__ import annotations

from typing import Any

import click
import repo_root  # noqa: F401
from command import given, one_sentence_errors, options

from pipeline.config import Settings


@click.command(context_settings={"max_content_width": 110}, help=__doc__)
@options(Settings, ["model", "hub", "quant", "vllm", "gpu_memory", "unsafe_grader", "ray_address"])
@click.option("--machine-only", is_flag=True, help="Leave out everything that loads the model.")
def main(machine_only: bool, **options: Any) -> None:
    with one_sentence_errors():
        settings = Settings(**given(options))
        from pipeline.tools.doctor import examine, failed

        checks = examine(settings, with_model=not machine_only)
    show(checks)
    raise SystemExit(failed(checks))


def show(checks: list[Any]) -> None:
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"ok": "green", "warning": "yellow", "FAILURE": "bold red", "skipped": "dim"}
    table = Table(title="doctor", show_lines=False)
    for name in ("check", "status", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for check in checks:
        status = f"[{colours[check.status]}]{check.status}[/]"
        table.add_row(check.name, status, escape(check.found), escape(check.advice))
    Console(width=None if sys.stdout.isatty() else 130).print(table)


if __name__ == "__main__":
    main()
