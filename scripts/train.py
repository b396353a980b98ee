"""Train the scalars of a TinyLoRA adapter with GRPO on graded C++ programs.

python scripts/train.py --u 32 --vllm
"""

from __future__ import annotations

from typing import Any

import click
import repo_root  # noqa: F401
from command import one_sentence_errors, run_options


@click.command(context_settings={"show_default": False, "max_content_width": 110}, help=__doc__)
@run_options
@click.option("--config", "config_file", metavar="FILE.yaml", help="Settings from a file; options on the line win.")
@click.option("--resume", is_flag=True, help="Continue the run in --output-dir (default: the newest run).")
@click.option("--dry-run", is_flag=True, help="Print the resolved settings and the trainable parameters, and stop.")
def main(config_file: str | None, resume: bool, dry_run: bool, **options: Any) -> None:
    with one_sentence_errors():
        from pipeline.config import RunConfig, read_settings
        from pipeline.launch import prepare
        from pipeline.run_folder import RunFolder
        from pipeline.training.run import stored_config, train

        given = {name: value for name, value in options.items() if value is not None}
        settings = (read_settings(config_file) if config_file else {}) | given
        if resume:
            config = stored_config(RunFolder.resume(settings.pop("output_dir", None)), settings)
        else:
            config = RunConfig(**settings)
        if dry_run:
            show(*prepare(config))
        else:
            train(config, resume=resume)


def show(choice: Any, config: Any) -> None:
    """Print what a run would do, without loading weights."""
    from dataclasses import asdict

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
