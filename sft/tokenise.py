"""Fill the token cache on CPUs, before GPUs are booked: all that the trainer with the same overrides would tokenise.

    python -m sft.tokenise data.train_files=rows/ data.cache_dir=/shared/tokens model.partial_pretrain=... [part=3/16]

part=3/16: the third of sixteen shares of the files, so that several machines fill one cache. What is cached already is
found and left; a command that was cut off goes on where it was, by files. Exit codes: 0, or 2 with a message.
"""

from __future__ import annotations

import re
import sys
import time

from sft.config import SftConfig, cli
from sft.config.cli import without_collections
from sft.config.secrets import presentable
from sft.errors import InputError

CANNOT_RUN = 2


def main() -> None:
    """Read argv, tokenise, and exit."""
    ours = [text for text in sys.argv[1:] if text.lstrip("+").startswith("part=")]
    overrides = [text for text in sys.argv[1:] if text not in ours]
    if {"--help", "-h"} & set(overrides):
        print(__doc__)

    def run(config: SftConfig) -> None:
        try:
            tokenise(config, part_of(ours[-1].partition("=")[2] if ours else "1/1"))
        except InputError as error:
            print(presentable(f"error: {error}"), file=sys.stderr)
            sys.exit(CANNOT_RUN)

    cli(run, overrides, world_size=0, needs_weights=False)


def part_of(text: str) -> tuple[int, int]:
    """Return (3, 16) for "3/16". Raises InputError for anything that is no share."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, of = (int(number) for number in found.groups()) if found else (0, 0)
    if not 1 <= part <= of:
        raise InputError(f"part={text} must be a share of the files, from 1/16 to 16/16, say.")
    return part, of


def tokenise(config: SftConfig, part: tuple[int, int]) -> None:
    """Tokenise one share of the files of a configuration, and say what was done and how long it took."""
    with without_collections():
        from sft.model.pretrained import find_model
        from sft.train.reading import open_tokenizer, tokenise_data

    started = time.monotonic()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        print(presentable(line), flush=True)

    tokenizer, _, _ = open_tokenizer(config, find_model(config.model.partial_pretrain, weights=False))
    files = tokenise_data(config, tokenizer, say, part)
    share = f"part {part[0]}/{part[1]}: " if part[1] > 1 else ""
    made = sum(line.startswith("tokenised ") for line in said)
    told = f"{made:,} tokenised, {files - made:,} found there, in {time.monotonic() - started:.1f} s"
    print(presentable(f"{share}{files:,} files are in {config.data.cache_dir}: {told}"))


if __name__ == "__main__":
    main()
