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
from command import given, one_sentence_errors, options

from pipeline.config import ConfigError, Settings
from pipeline.config.evaluation import FROM_A_RUN, EvalSettings
from storage.files import write_json


@click.command(context_settings={"max_content_width": 110}, help=__doc__)
@click.argument("checkpoints", nargs=-1, type=click.Path(path_type=Path))
@options(EvalSettings)
@options(Settings, FROM_A_RUN)
def main(checkpoints: tuple[Path, ...], **options: Any) -> None:
    with one_sentence_errors():
        told = given(options)
        of_run = {name: told.pop(name) for name in FROM_A_RUN if name in told}
        asked = EvalSettings(**told)
        chosen = [*checkpoints, *([Path(asked.checkpoint)] if asked.checkpoint else [])]
        out = Path(asked.out) if asked.out else None
        from pipeline.evaluation import choose, compare

        if asked.power is not None:
            click.echo("\n".join(compare.power_report(asked.power, asked.base_rate, chosen)))
            return
        if asked.compare and len(chosen) == 2 and all(path.is_file() for path in chosen):
            if useless := [*of_run, *(name for name in told if name not in ("compare", "pass_at", "out"))]:
                option = f"--{useless[0].replace('_', '-')}"
                raise ConfigError(f"{option}: two stored evaluations are compared as they were made; leave it out")
            comparison = compare.compare_files(chosen[0], chosen[1], asked.ks)
            click.echo("\n".join(compare.comparison_lines(comparison)))
            if out is not None:
                write_json(out, {"comparison": comparison})
            return
        if not chosen and not (asked.baseline and not asked.compare) and "model" not in of_run:
            chosen = [newest] if (newest := choose.newest_run()) else []
        policies = choose.policies(chosen, asked.baseline or not chosen, asked.compare)
        click.echo("policy: " + " against ".join(str(path or "the base model") for _, path in policies))
        settings = choose.settings_for(chosen[0] if chosen else None, of_run | asked.of_run)
        settings.check_told(of_run)
        asked.check_samples(settings.eval_temperature)
        target = out or (chosen[0] if chosen else Path()) / "eval.json"
        from pipeline.evaluation.run import evaluate_policies, lines

        record = evaluate_policies(settings, policies, asked.ks, asked.samples, target, asked.seed)
        click.echo("\n".join(lines(record)))
        click.echo(f"written to {target}")


if __name__ == "__main__":
    main()
