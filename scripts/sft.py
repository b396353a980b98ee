"""Warm a model up with supervised training on worked answers, before RL.

python scripts/sft.py --task gsm8k --dataset openai/gsm8k --output-dir warm
"""

from __future__ import annotations

from typing import Any

import click
import repo_root  # noqa: F401
from command import given, one_sentence_errors, options

from pipeline.config.warm_up import WarmUp


@click.command(context_settings={"max_content_width": 110}, help=__doc__)
@options(WarmUp)
def main(**options: Any) -> None:
    with one_sentence_errors():
        settings = WarmUp(**given(options))
        from pipeline.training.sft import warm_up

        warm_up(settings)


if __name__ == "__main__":
    main()
