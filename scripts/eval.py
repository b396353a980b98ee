"""Evaluate a checkpoint, or the base model, on the held-out problems: pass@k with 95 % intervals.

\b
python scripts/eval.py --pass-at 1                     the newest run
python scripts/eval.py --compare RUN --baseline        a run against its base, on the same prompts and seeds
python scripts/eval.py --compare RUN OTHER --greedy    two checkpoints (or two eval.json files)
python scripts/eval.py --power 0.05                    how many problems show a gain of 0.05
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import repo_root  # noqa: F401
from command import one_sentence_errors, only


@click.command(context_settings={"max_content_width": 110}, help=__doc__)
@click.argument("checkpoints", nargs=-1, type=click.Path(path_type=Path))
@click.option("--pass-at", default="1", show_default=True, help="Values of k, separated by commas.")
@click.option("--num-samples", type=int, help="Completions per problem. Default: the largest k.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A run's folder. Default: the newest run, if any.")
@click.option("--baseline", is_flag=True, help="Evaluate the base model: alone, or against a checkpoint.")
@click.option("--compare", is_flag=True, help="Compare two checkpoints or eval.json files, or one and --baseline.")
@click.option("--greedy", is_flag=True, help="Temperature 0, one completion per problem.")
@click.option("--temperature", "eval_temperature", type=float, help="Default: the run's --eval-temperature.")
@click.option("--limit", "--eval-problems", "eval_problems", type=int, help="At most this many held-out problems.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling.")
@click.option("--power", type=float, metavar="GAIN", help="Print how many problems show this gain of pass@1; stop.")
@click.option("--base-rate", type=float, default=0.5, show_default=True, help="For --power without an eval.json.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write. Default: eval.json in the checkpoint's folder."
)
@only(
    "model",
    "hub",
    "quant",
    "vllm",
    "task",
    "template",
    "system_prompt",
    "dataset",
    "difficulty",
    "eval_dataset",
    "eval_split",
    "max_prompt_length",
    "max_completion_length",
    "reward",
    "compile_credit",
    "grader_workers",
    "unsafe_grader",
    "header_store",
    "canary",
    "gpu_memory",
)
def main(
    checkpoints: tuple[Path, ...],
    pass_at: str,
    num_samples: int | None,
    checkpoint: Path | None,
    baseline: bool,
    compare: bool,
    greedy: bool,
    seed: int,
    power: float | None,
    base_rate: float,
    out: Path | None,
    **options: Any,
) -> None:
    with one_sentence_errors():
        from pipeline.config import ConfigError
        from pipeline.evaluation import run as evaluation

        ks = evaluation.parse_ks(pass_at)
        samples = evaluation.samples_for(ks, num_samples, greedy)
        chosen = [*checkpoints, *([checkpoint] if checkpoint else [])]
        given = {name: value for name, value in options.items() if value is not None}
        if greedy:
            if given.get("eval_temperature"):
                raise ConfigError(f"--greedy and --temperature {given['eval_temperature']} exclude each other")
            given["eval_temperature"] = 0.0
        if power is not None:
            click.echo("\n".join(evaluation.power_report(power, base_rate, chosen)))
            return
        if compare and len(chosen) == 2 and all(path.is_file() for path in chosen):
            comparison = evaluation.compare_files(chosen[0], chosen[1], ks)
            click.echo("\n".join(evaluation.comparison_lines(comparison)))
            if out is not None:
                evaluation.write_json(out, {"comparison": comparison})
            return
        if not chosen and not (baseline and not compare) and "model" not in given:
            chosen = [newest] if (newest := evaluation.newest_run()) else []
        policies = evaluation.policies(chosen, baseline or not chosen, compare)
        click.echo("policy: " + " against ".join(str(path or "the base model") for _, path in policies))
        config = evaluation.settings_for(chosen[0] if chosen else None, given)
        target = out or (chosen[0] if chosen else Path()) / "eval.json"
        record = evaluation.evaluate_policies(config, policies, ks, samples, target, seed)
        click.echo("\n".join(evaluation.lines(record)))
        click.echo(f"written to {target}")


if __name__ == "__main__":
    main()
