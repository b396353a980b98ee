"""Convert a public data set to problems as JSON lines.

SOURCE is one of the data sets below; without --from it is read from the hub.

python scripts/prepare_data.py kattis --from packages/ --out problems.jsonl
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import repo_root  # noqa: F401
from command import given, one_sentence_errors, options

from data.settings import Preparation
from data.sources import SOURCES
from storage.settings import declared

EPILOG = f"Data sets: {', '.join(SOURCES)}."


@click.command(context_settings={"max_content_width": 110}, help=__doc__, epilog=EPILOG)
@click.argument("source")
@options(Preparation, [setting.name for setting in declared(Preparation) if setting.name != "source"])
def main(source: str, **options: Any) -> None:
    with one_sentence_errors():
        settings = Preparation(source=source, **given(options))
        from data.prepare import prepare_dataset
        from pipeline.run_folder import check_target

        check_target(Path(settings.out))
        counts = prepare_dataset(settings)
        click.echo(", ".join(f"{count} {fate}" for fate, count in counts.items() if count) + f": see {settings.out}")


if __name__ == "__main__":
    main()
