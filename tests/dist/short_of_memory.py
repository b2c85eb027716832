"""The real command, except that rank 1 cannot allocate in its second step: `torchrun -m tests.dist.short_of_memory`."""

import os
import sys

import torch

from sft import fsdp_sft_trainer as trainer
from sft import load_config


def main() -> None:
    compute, calls = trainer.token_ce_sum, []

    def short(model, batch, **options):
        calls.append(batch)
        if os.environ["RANK"] == "1" and len(calls) == 3:  # of two micro-batches per step
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd a page of advice.")
        return compute(model, batch, **options)

    trainer.token_ce_sum = short
    trainer.main(load_config(sys.argv[1:]))


if __name__ == "__main__":
    main()
