"""Write a model of the exact shapes of Qwen2.5-Coder with random weights: speed and memory without a download.

The sizes on disk: 0.5b 1.0 GB, 1.5b 3.1 GB, 3b 6.2 GB, 7b 15.2 GB, 14b 29.5 GB. The numbers are drawn on the GPU where
there is one. The model generates noise: its weights were never trained.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path

import click
import repo_root  # noqa: F401
from command import one_sentence_errors

from pipeline.policy.shapes import SHAPES


@click.command(context_settings={"max_content_width": 110}, help=__doc__)
@click.argument("name", type=click.Choice(list(SHAPES)))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.  [default: shapes/NAME]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seeds the weights.")
def main(name: str, out: Path | None, seed: int) -> None:
    start = time.perf_counter()
    out = out or Path("shapes") / name
    with one_sentence_errors():
        import torch

        from pipeline.policy.shapes import write_shape

        device = "cuda" if torch.cuda.is_available() else "cpu"
        made = write_shape(name, out, seed, device)
    size = f"{made.parameters:,} parameters, {made.size:,} bytes"
    if made.new:
        click.echo(f"wrote {out}: {size}, {time.perf_counter() - start:.1f} seconds")
    else:
        click.echo(f"already there: {out}, {size}")
    click.echo(f"use it with: python scripts/bench.py generation --model {shlex.quote(str(out))}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit removes the unfinished folder, a kill would not
    main()
