"""Show what a run would train, on the CPU, without its weights: samples, numbers, plan of the steps, memory.

    python -m sft.inspect runs/gsm8k                    # as that run was configured
    python -m sft.inspect data.train_files=... model.partial_pretrain=... +inspect.samples=5 +inspect.html=page.html

Exit codes: 0, or 2 where the configuration cannot run, or 3 where this data cannot train.
"""

from __future__ import annotations

import os
import sys

from sft.config import SftConfig, cli
from sft.config.cli import exit_on_problems, without_collections
from sft.config.secrets import presentable
from sft.errors import InputError
from sft.inspect.options import Options, help_text, take_options

CANNOT_RUN, CANNOT_TRAIN = 2, 3


def main() -> None:
    """Read argv, look, and exit."""
    if os.environ.get("RANK", "0") != "0":  # torchrun is not needed; with it, one looks
        return
    with exit_on_problems():
        options, overrides = take_options(sys.argv[1:])
    if {"--help", "-h"} & set(overrides):
        print(f"{__doc__}\nKeys of this command:\n\n{help_text()}\n\nAll others are the trainer's:\n")

    def run(config: SftConfig) -> None:
        if code := look(config, options):
            sys.exit(code)

    cli(run, overrides, world_size=options.ranks or 0, needs_weights=False)


def look(config: SftConfig, options: Options) -> int:
    """Show everything and return the exit code. Prints errors as the trainer would."""
    with without_collections():
        from sft.inspect.story import DataError, tell

    try:
        tell(config, options)
    except DataError as error:
        print(presentable(f"error: {error}"), file=sys.stderr)
        return CANNOT_TRAIN
    except InputError as error:
        print(presentable(f"error: {error}"), file=sys.stderr)
        return CANNOT_RUN
    return 0


if __name__ == "__main__":
    main()
