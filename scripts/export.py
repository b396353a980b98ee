"""Export a trained adapter so that other libraries load it, or import a tiny_lora_v.pt of the predecessors.

\b
python scripts/export.py RUN --format lora --out adapter/            PEFT and vLLM
python scripts/export.py RUN/best --format merged --out model/       a plain model
python scripts/export.py tiny_lora_v.pt --format tinylora --out imported/ --model Qwen/Qwen2.5-Coder-3B-Instruct
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click
import repo_root  # noqa: F401
from command import one_sentence_errors

FORMATS = ["lora", "peft-tinylora", "merged", "tinylora"]


@click.command(context_settings={"max_content_width": 110}, help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), default="lora", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--model", help="Folder, GGUF file or hub id of the base. Default: what the checkpoint was trained on.")
@click.option("--quant", type=click.Choice(["nf4", "none"]), help="How the base is loaded. Default: as it was trained.")
@click.option("--rounding", type=click.Choice(["stochastic", "nearest"]), help="Of merged weights in 16 bits.")
@click.option("--variant", help="Projections of an imported file that does not say: full, diag or diag-scaled.")
@click.option("--overwrite", is_flag=True, help="Replace the folder if it exists.")
@click.option("--push-to-hub", metavar="OWNER/NAME", help="Then upload the folder to the Hugging Face hub.")
def main(
    checkpoint: Path,
    form: str,
    out: Path,
    model: str | None,
    quant: str | None,
    rounding: str | None,
    variant: str | None,
    overwrite: bool,
    push_to_hub: str | None,
) -> None:
    with one_sentence_errors():
        from pipeline.tools.export import export, push

        export(
            checkpoint, form, out, model=model, quant=quant, rounding=rounding, variant=variant, overwrite=overwrite
        )
        click.echo(f"written to {out}")
        if push_to_hub:
            click.echo(f"uploaded to {push(out, push_to_hub)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit removes the unfinished folder, a kill would not
    main()
