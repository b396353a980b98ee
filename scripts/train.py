"""Train the scalars of a TinyLoRA adapter with GRPO on graded C++ programs.

python scripts/train.py --u 32 --vllm
"""

from __future__ import annotations

from typing import Any

import click
import repo_root  # noqa: F401
from command import given, one_sentence_errors, options

from pipeline.config import Settings, read_settings
from pipeline.run_folder import RunFolder


@click.command(context_settings={"max_content_width": 110}, help=__doc__)
@options(Settings)
@click.option("--config", "config_file", metavar="FILE.yaml", help="Settings from a file; options on the line win.")
@click.option("--resume", is_flag=True, help="Continue a run (default: the newest with a checkpoint).")
@click.option("--dry-run", is_flag=True, help="Print the resolved settings and the trainable parameters, and stop.")
def main(config_file: str | None, resume: bool, dry_run: bool, **options: Any) -> None:
    with one_sentence_errors():
        told = (read_settings(config_file) if config_file else {}) | given(options)
        from pipeline.training import run

        folder = RunFolder.resume(told.pop("output_dir", None)) if resume else None
        settings = run.stored_config(folder, told) if folder else Settings(**told)
        settings.check_told(told)
        if dry_run:
            click.echo(run.described(settings))
        else:
            run.train(settings, resume=resume)


if __name__ == "__main__":
    main()
