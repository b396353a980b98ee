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
        from pipeline.report.collect import run_data
        from pipeline.report.page import write_page
        from pipeline.run_folder import check_target

        target = out or runs[0] / "report.html"
        if out is not None:
            check_target(out)
        collected = [run_data(run, max_rollouts) for run in runs]
        write_page(collected, target)
        click.echo(f"{target} ({target.stat().st_size / 1e6:.1f} MB)")
        if pictures:
            from pipeline.report.pictures import draw

            for run in collected:
                for path in draw(run, target.parent, prefix=f"{run['name']}-" if len(runs) > 1 else ""):
                    click.echo(str(path))


if __name__ == "__main__":
    main()
