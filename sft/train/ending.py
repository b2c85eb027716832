"""How a rank ends whose run cannot go on: who says why, with which exit code, and without waiting for anybody."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from sft.errors import InputError, MishapError, let_another_rank_speak, spare_the_restarts
from sft.parallel.world import LostRanksError, World
from sft.train.forecast_memory import OutOfMemory


def end_with(error: InputError | LostRanksError, world: World) -> NoReturn:
    """Exit with 2 where the input is to blame, with 1 for ranks that are lost. One rank of each node says it."""
    if isinstance(error, LostRanksError):  # those that are left have settled who speaks, and says which rank it is
        end_at_once(1, f"error: {error}" if str(error) else "")
    # What is wrong with a file may be wrong on one node only; of memory, every rank has its own.
    if world.local_rank == 0 or isinstance(error, OutOfMemory):
        who = "error" if world.is_main else f"error on rank {world.rank}"
        print(f"{who}: {error}", file=sys.stderr, flush=True)
        if not isinstance(error, MishapError):
            spare_the_restarts()  # which ends this rank, too
        end_at_once(2)
    let_another_rank_speak()
    end_at_once(2)


def end_at_once(code: int, message: str = "") -> NoReturn:
    """Exit without tearing down: threads of a process group that was left would hold this process back, or abort it."""
    if sys.stderr.isatty():
        print("\033[?25h", end="", file=sys.stderr)  # the cursor, which a progress bar hides
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
