"""Train the scalars of a TinyLoRA adapter with GRPO on graded C++ programs.

python scripts/train.py --u 32 --vllm
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
import repo_root  # noqa: F401
from command import given, one_sentence_errors, options

from pipeline.config import Settings, read_settings


@click.command(context_settings={"max_content_width": 110}, help=__doc__)
@options(Settings)
@click.option("--config", "config_file", metavar="FILE.yaml", help="Settings from a file; options on the line win.")
@click.option("--resume", is_flag=True, help="Continue the run in --output-dir (default: the newest run).")
@click.option("--dry-run", is_flag=True, help="Print the resolved settings and the trainable parameters, and stop.")
def main(config_file: str | None, resume: bool, dry_run: bool, **options: Any) -> None:
    with one_sentence_errors():
        told = (read_settings(config_file) if config_file else {}) | given(options)
        from pipeline.launch import prepare
        from pipeline.run_folder import RunFolder
        from pipeline.training.run import stored_config, train

        settings = stored_config(RunFolder.resume(told.pop("output_dir", None)), told) if resume else Settings(**told)
        if dry_run:
            show(*prepare(settings))
        else:
            train(settings, resume=resume)


def show(choice: Any, config: Any) -> None:
    """Print what a run would do, without loading weights."""
    from pipeline.environment import prepare_environment
    from pipeline.policy.loading import parameter_table

    click.echo(f"model: {choice.name} ({choice.reason})\n")
    for name, value in asdict(config).items():
        click.echo(f"{name:24}{value}")
    prepare_environment(choice.location)
    click.echo()
    for name, value in parameter_table(choice, config):
        click.echo(f"{name:24}{value}")


if __name__ == "__main__":
    main()
