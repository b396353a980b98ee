"""Pretrain the bundled starter model from nothing: generated problems, programs by careful and careless authors.

On one H200 it takes a minute or two; on two CPU cores many hours with the default number of steps.
"""

from pathlib import Path

import click
from repo_root import ROOT

from data.starter.authors import CAREFUL_SHARE


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "data/starter/model",
              show_default="data/starter/model")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the folder if it exists.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda or cpu.")
@click.option("--examples", type=click.IntRange(1000), default=150_000, show_default=True, help="Corpus size.")
@click.option("--steps", type=click.IntRange(1), default=3000, show_default=True)
@click.option("--batch-tokens", type=click.IntRange(1024), default=32_768, show_default=True)
@click.option("--learning-rate", type=float, default=2e-3, show_default=True)
@click.option("--careful-share", type=click.FloatRange(0.01, 0.99), default=CAREFUL_SHARE, show_default=True,
              help="Share of the programs by careful authors; it moves the pass rate.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--evaluate", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Then sample 4 programs for each of N held-out problems and grade them.")  # fmt: skip
@click.option("--only-evaluate", is_flag=True, help="Train nothing; evaluate the model in --out.")
def main(
    out: Path, overwrite: bool, device: str, examples: int, steps: int, batch_tokens: int, learning_rate: float,
    careful_share: float, seed: int, evaluate: int, only_evaluate: bool,
) -> None:  # fmt: skip
    if out.exists() and not overwrite and not only_evaluate:
        raise click.UsageError(f"{out} exists; pass --overwrite to replace it or --out to write elsewhere")
    if only_evaluate and not evaluate:
        raise click.UsageError("--only-evaluate: of how many problems? add --evaluate N")
    if only_evaluate and not (out / "config.json").is_file():
        raise click.UsageError(f"--only-evaluate: {out} holds no model (no config.json); name its folder with --out")
    import torch

    from pipeline.starter.measure import report
    from pipeline.starter.pretrain import Recipe, make

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not only_evaluate:
        recipe = Recipe(examples, steps, batch_tokens, learning_rate, careful_share, seed=seed)
        loss = make(recipe, out, torch.device(device))
        click.echo(f"wrote {out}, final loss per program token {loss:.4f}")
    if evaluate:
        click.echo(report(out, evaluate, torch.device(device)))


if __name__ == "__main__":
    main()
