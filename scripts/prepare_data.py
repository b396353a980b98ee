"""Convert a public data set to problems as JSON lines.

SOURCE is one of the data sets below; without --from it is read from the hub.

python scripts/prepare_data.py kattis --from packages/ --out problems.jsonl
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import repo_root  # noqa: F401
from command import one_sentence_errors

from data.sources import SOURCES

EPILOG = f"Data sets: {', '.join(SOURCES)}."


@click.command(context_settings={"show_default": True, "max_content_width": 110}, help=__doc__, epilog=EPILOG)
@click.argument("source")
@click.option("--out", required=True, metavar="FILE.jsonl", help="Where the problems go.")
@click.option("--from", "location", help="Folder, parquet, arrow, JSON-lines or JSON file, or another hub id.")
@click.option("--split", help="Split to read.  [default: the data set's training split]")
@click.option("--config", help="The data set's configuration on the hub.")
@click.option(
    "--source", "only_sources", multiple=True, help="Keep problems of this origin, such as codeforces. Repeatable."
)
@click.option("--difficulty", help="Keep windows such as 800:1200, A:C or easy:medium, separated by commas.")
@click.option("--min-tests", type=int, default=0, help="Drop problems with fewer tests.")
@click.option("--max-tests", type=int, help="Keep so many tests of a problem, spread over their sizes.")
@click.option("--max-test-bytes", type=int, help="Leave out tests whose input and output are larger.")
@click.option("--text-language", help="Keep statements in this language: en, zh, ja or ru.")
@click.option("--against", multiple=True, metavar="EVAL.jsonl", help="Drop what overlaps with this set. Repeatable.")
@click.option("--held-out", type=float, default=0.0, help="Share that goes to FILE.held_out.jsonl, without leakage.")
@click.option("--max-samples", type=int, help="Keep so many problems, chosen at random.")
@click.option("--seed", type=int, default=0, help="Seeds the choice and the split.")
@click.option("--verify/--no-verify", default=True, help="Grade the set's reference solutions, if it has any.")
@click.option("--grader-workers", "workers", type=int, help="Grader processes.  [default: one per core]")
@click.option("--unsafe-grader", is_flag=True, help="Verify even where programs cannot be sandboxed.")
def main(**options: Any) -> None:
    with one_sentence_errors():
        from data.prepare import Preparation, prepare_dataset
        from pipeline.run_folder import check_target

        check_target(Path(options["out"]))
        counts = prepare_dataset(Preparation(**options))
        click.echo(", ".join(f"{count} {fate}" for fate, count in counts.items() if count) + f": see {options['out']}")


if __name__ == "__main__":
    main()
