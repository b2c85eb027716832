"""This module holds the commands that `pip install` gives: `sft-train` is `python -m sft.fsdp_sft_trainer`."""

from functools import partial
from runpy import run_module


def _run(module: str) -> None:
    run_module(module, run_name="__main__")


train = partial(_run, "sft.fsdp_sft_trainer")
inspect = partial(_run, "sft.inspect")
evaluate = partial(_run, "sft.evaluate")
generate = partial(_run, "sft.generate")
export = partial(_run, "sft.export")
tokenise = partial(_run, "sft.tokenise")
promote = partial(_run, "sft.checkpoint.promote")
