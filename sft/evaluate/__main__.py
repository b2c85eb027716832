"""Evaluate a model on data.val_files: loss, perplexity, token accuracy as in training, and if asked its answers.

    torchrun --standalone --nproc_per_node=8 -m sft.evaluate runs/gsm8k +evaluate.generate=true
    python -m sft.evaluate runs/gsm8k data.val_files=other.jsonl +evaluate.out=predictions.jsonl

A run directory brings its configuration and is the model. Without one, give the overrides of training and
model.partial_pretrain.
Keys that only training reads may stay. Exit codes: 0, or 2 with a message.
"""

from __future__ import annotations

import os
import sys

from sft.config import SftConfig, cli
from sft.config.cli import exit_on_problems, without_collections
from sft.evaluate.options import help_text, take_options


def main() -> None:
    """Read argv, evaluate, and exit."""
    with exit_on_problems():
        options, overrides = take_options(sys.argv[1:])
    if {"--help", "-h"} & set(overrides) and os.environ.get("RANK", "0") == "0":
        print(f"{__doc__}\nKeys of this command:\n\n{help_text()}\n\nAll others are the trainer's:\n")

    def run(config: SftConfig) -> None:
        with without_collections():
            from sft.evaluate.run import main  # torch takes seconds to import

        main(config, options)

    cli(run, overrides, world_size=0)


if __name__ == "__main__":
    main()
