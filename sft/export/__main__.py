"""Export a checkpoint, or the newest of a run, as a model, an adapter or a .pt file. One process, on the CPU.

    python -m sft.export runs/gsm8k                                   # ./gsm8k-step700, a Hugging Face directory
    python -m sft.export runs/gsm8k/global_step_400 --dtype fp32 --out DIR
    python -m sft.export runs/gsm8k --format adapter                  # what LoRA trained, for peft
    python -m sft.export runs/gsm8k --format pt                       # ./gsm8k-sft_final.pt

A checkpoint without a model (STATE) is rebuilt from the run's base model and the state. What is written is there whole
or not at all. Exit codes: 0, or 2 with a message.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from sft.config.cli import without_collections
from sft.config.secrets import presentable
from sft.config.streams import steady_streams
from sft.errors import InputError

FORMATS = {
    "hf": "a directory for from_pretrained: the weights in the base model's dtype unless --dtype asks for another",
    "adapter": "a LoRA run's adapter for peft",
    "pt": "one file for torch.load(weights_only=True): model_state, optimizer_state, config, step, run_name",
}


def main(arguments: list[str] | None = None) -> int:
    """Read argv, export, say where, and return the exit code."""
    steady_streams()
    parser = argparse.ArgumentParser(
        prog="python -m sft.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a run directory (its newest whole checkpoint) or a global_step_N")
    told = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    parser.add_argument("--format", choices=FORMATS, default="hf", help=f"{told} (default: hf)")
    parser.add_argument("--dtype", choices=["bf16", "fp32", "fp16"], help="of the weights; not for adapters")
    parser.add_argument("--out", type=Path, metavar="PATH", help="what is written; default: <run>-step<N> right here")
    parser.add_argument("--base", type=Path, metavar="DIR", help="the base model, if it is no longer where it was")
    options = parser.parse_args(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        parser.error("one process exports; start it without torchrun")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing is computed: the device would only be in somebody's way
    with without_collections():
        from sft.export.after import export_after  # torch takes seconds to import, which --help need not

    try:
        told = export_after(options.source, options.format, dtype=options.dtype, out=options.out, base=options.base)
        print(presentable(told))
    except InputError as error:
        print(presentable(f"error: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
