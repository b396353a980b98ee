"""Write a report of one or more runs: a single HTML file that works offline, and pictures.

python scripts/report.py runs/RUN [runs/OTHER ...]
"""

from __future__ import annotations

from pathlib import Path

import click
import repo_root  # noqa: F401
from command import one_sentence_errors


@click.command(context_settings={"max_content_width": 110}, help=__doc__)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The HTML file. Default: report.html in the first run.")
@click.option("--max-rollouts", type=click.IntRange(0), default=20_000, show_default=True, help="Per run.")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Also PNG files beside the page.")
def main(runs: tuple[Path, ...], out: Path | None, max_rollouts: int, pictures: bool) -> None:
    with one_sentence_errors():
        from pipeline.report.write import write_report

        for path in write_report(runs, out, max_rollouts, pictures):
            click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
