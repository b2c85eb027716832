"""End a rank whose run cannot go on: which rank says why, with which exit code, without waiting for others."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from sft.config.secrets import presentable
from sft.errors import (
    BugError,
    InputError,
    MishapError,
    OwnMishapError,
    let_another_rank_speak,
    point_upwards,
    spare_the_restarts,
)
from sft.files import is_of_the_machine
from sft.parallel.world import LostRanksError, World, phase

MEND = "What was saved before is whole: mend that (df, quota, ulimit -a), and give the same command again."
REPORT = "Please report it with the traceback above and the run's run.json."


def end_with(error: Exception, world: World) -> NoReturn:
    """Exit with 2 and a sentence where the input or the machine is to blame, with 1 for lost ranks and for our bugs.

    One rank of each node says the sentence. A bug shows its traceback on the rank where it happened.
    """
    if not isinstance(error, InputError | BugError | LostRanksError) and is_of_the_machine(error):
        error = OwnMishapError(f"in {phase()}: {error}. {MEND}")
    who = "error" if world.is_main else f"error on rank {world.rank}"
    if isinstance(error, LostRanksError):  # those that are left have settled who speaks, and says which rank it is
        end_at_once(1, f"error: {error}" if str(error) else "")
    if not isinstance(error, InputError):
        _end_with_bug(error, who)
    # What is wrong with a file may be wrong on one node only; memory, say, every rank has its own.
    if world.local_rank == 0 or isinstance(error, OwnMishapError):
        print(presentable(f"{who}: {error}"), file=sys.stderr, flush=True)
        point_upwards()
        if not isinstance(error, MishapError):
            spare_the_restarts()  # which ends this rank, too
        end_at_once(2)
    let_another_rank_speak()
    end_at_once(2)


def _end_with_bug(error: Exception, who: str) -> NoReturn:
    cause = error.__cause__ if isinstance(error, BugError) else error
    if cause is None:  # another rank has it
        let_another_rank_speak()
        end_at_once(1)
    print(presentable("".join(traceback.format_exception(cause)).rstrip()), file=sys.stderr)
    told = f"this is a bug, not your input: {_told(error)}. {REPORT}"
    if architecture := _architecture_in(cause):
        told = (
            f"{type(cause).__name__} in transformers' own code of {architecture}. If one forward of this model fails "
            f"without this trainer, too, the reason is its config.json or the version of transformers. If not, this is "
            f"a bug: {REPORT[0].lower()}{REPORT[1:]}"
        )
    print(presentable(f"{who}: {told}"), file=sys.stderr, flush=True)
    # A driver or a disk that failed in the middle of a step may do better after a restart; a bug will not.
    if isinstance(error, BugError) or not isinstance(error, RuntimeError | OSError | MemoryError):
        spare_the_restarts()
    end_at_once(1)


def _architecture_in(error: BaseException) -> str | None:
    """Return the architecture in whose code of transformers an error arose; None if code of ours lies below it."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).parts
        if path[-4:-2] == ("transformers", "models"):
            return path[-2]
        if "transformers" not in path and "torch" not in path and "sft" in path:
            return None
    return None


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, BugError) else type(error).__name__  # its words stand in the traceback


def end_at_once(code: int, message: str = "") -> NoReturn:
    """Exit without tearing down: threads of a process group that was left would hold this process back, or abort it."""
    if sys.stderr.isatty():
        print("\033[?25h", end="", file=sys.stderr)  # the cursor, which a progress bar hides
    if message:
        print(presentable(message), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
