"""Copy a checkpoint's model out of a run, verified, to <run>/promoted/<id>.

sft-promote --checkpoints-jsonl run/checkpoints.jsonl [--step 400]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sft.checkpoint.promote import promote
from sft.config.secrets import presentable
from sft.config.streams import steady_streams
from sft.errors import InputError


def main() -> None:
    steady_streams()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints-jsonl", type=Path, required=True, metavar="FILE", help="the run's ledger")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint; default: the newest with a model")
    parser.add_argument("--model", metavar="NAME", help="base model to record; default: the one the ledger names")
    parser.add_argument("--output-model-id", metavar="ID", help="name of the copy; default: <job>-step-N")
    arguments = parser.parse_args()
    try:
        target = promote(
            arguments.checkpoints_jsonl,
            step=arguments.step,
            base_model=arguments.model,
            model_id=arguments.output_model_id,
        )
    except InputError as error:
        sys.exit(presentable(f"error: {error}"))
    print(presentable(target))


if __name__ == "__main__":
    main()
