"""Evaluate a checkpoint, or the base model, on the held-out problems: pass@k with 95 % intervals.

python scripts/eval.py --pass-at 1
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import repo_root  # noqa: F401
from command import one_sentence_errors, only


@click.command(context_settings={"max_content_width": 110}, help=__doc__)
@click.option("--pass-at", default="1", show_default=True, help="Values of k, separated by commas.")
@click.option("--num-samples", type=int, help="Completions per problem. Default: the largest k.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A run's folder. Default: the newest run, if any.")
@click.option("--baseline", is_flag=True, help="Evaluate the base model: alone, or beside --checkpoint.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write. Default: eval.json in the checkpoint's folder."
)
@only(
    "model",
    "hub",
    "quant",
    "vllm",
    "dataset",
    "eval_dataset",
    "eval_problems",
    "temperature",
    "max_prompt_length",
    "max_completion_length",
    "seed",
    "reward",
    "compile_credit",
    "grader_workers",
    "unsafe_grader",
    "gpu_memory",
)
def main(
    pass_at: str, num_samples: int | None, checkpoint: Path | None, baseline: bool, out: Path | None, **options: Any
) -> None:
    with one_sentence_errors():
        from pipeline.config import ConfigError
        from pipeline.evaluation import evaluate_policies, lines, newest_run, parse_ks, settings_for

        ks = parse_ks(pass_at)
        samples = max(ks) if num_samples is None else num_samples
        if samples < max(ks):
            raise ConfigError(f"--num-samples {samples} is less than the {max(ks)} that --pass-at needs")
        given = {name: value for name, value in options.items() if value is not None}
        if checkpoint is None and not baseline and "model" not in given:
            checkpoint = newest_run()
        click.echo(f"policy: {checkpoint or 'the base model'}{' and its base' if checkpoint and baseline else ''}")
        config = settings_for(checkpoint, given)
        target = out or (checkpoint or Path()) / "eval.json"
        record = evaluate_policies(config, checkpoint, baseline or checkpoint is None, ks, samples, target)
        click.echo("\n".join(lines(record)))
        click.echo(f"written to {target}")


if __name__ == "__main__":
    main()
