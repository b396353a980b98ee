"""Warm a model up with supervised training on worked answers, before RL.

python scripts/sft.py --task gsm8k --dataset openai/gsm8k --output-dir warm
"""

from __future__ import annotations

from typing import Any

import click
import repo_root  # noqa: F401
from command import HELP, one_sentence_errors

from pipeline.config import TASK_NAMES


@click.command(context_settings={"show_default": True, "max_content_width": 110}, help=__doc__)
@click.option("--output-dir", required=True, help="Where the model folder goes; must not exist.")
@click.option("--model", help=HELP["model"])
@click.option("--hub", type=click.Choice(["huggingface", "modelscope"]), default="huggingface", help=HELP["hub"])
@click.option("--task", type=click.Choice(TASK_NAMES), default="gsm8k", help="Form of prompts and answers.")
@click.option("--template", help=HELP["template"])
@click.option("--system-prompt", help=HELP["system_prompt"])
@click.option("--dataset", help=HELP["dataset"])
@click.option("--max-samples", type=int, default=2000, help="Use at most this many examples.")
@click.option("--method", type=click.Choice(["lora", "full"]), default="lora", help="An adapter, or all weights.")
@click.option(
    "--quant", type=click.Choice(["nf4", "none"]), help="Frozen weights under an adapter.  [default: nf4 on a GPU]"
)
@click.option("--lora-rank", type=int, default=16, help="Rank of the adapter.")
@click.option("--steps", type=int, default=100, help="Optimizer steps.")
@click.option("--batch-size", type=int, default=16, help="Examples per step.")
@click.option("--lr", type=float, help="Learning rate.  [default: 2e-4 for lora, 5e-5 for full]")
@click.option("--max-length", type=int, default=1024, help="Longer examples (in tokens) are dropped and counted.")
@click.option("--seed", type=int, default=0, help="Seeds examples, their order and the adapter.")
def main(**options: Any) -> None:
    with one_sentence_errors():
        from pipeline.training.sft import WarmUp, warm_up

        warm_up(WarmUp(**options))


if __name__ == "__main__":
    main()
