"""The real command with a bug in it: rank FAULTY meets an attribute of None while all ranks save their state."""

import os
import sys

from sft import fsdp_sft_trainer as trainer
from sft import load_config
from sft.checkpoint import commit


def main() -> None:
    take = commit.Snapshot

    def forgetful(model, *others, **options):
        return take(None if os.environ["RANK"] == os.environ["FAULTY"] else model, *others, **options)

    commit.Snapshot = forgetful
    trainer.main(load_config(sys.argv[1:]))


if __name__ == "__main__":
    main()
