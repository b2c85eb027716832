"""Define the exceptions that all rooms share, and what ranks do before they end with one."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

LAST_WORD_S = 10.0
ABOVE = "none: it is no crash. What is wrong, and how to go on, stands above torchrun's own lines."


class InputError(ValueError):
    """Something the user gave cannot be used: the message names the knob or file:row, what was found, what was
    expected and a way out. The command prints it without a traceback and exits with code 2; every other exception
    is a bug of ours and keeps its traceback.
    """


class MishapError(InputError):
    """Something around the run went wrong - a disk, a mount, memory - and may go well the next time."""


class OwnMishapError(MishapError):
    """A mishap that this rank has met and others may not know of: it says so itself, whichever rank it is."""


class BugError(Exception):
    """A bug of ours, found in a step that all ranks take together. Its `__cause__` is the exception itself, on the
    rank where it happened, and None on the others.
    """


def said(error: BaseException) -> str:
    """Return the text of an exception; the name of its type where it has none."""
    return str(error).strip() or type(error).__name__


def let_another_rank_speak() -> None:
    """Wait before exiting, on a rank whose message another one prints: torchrun ends all ranks at the first exit.

    The one that speaks may still be importing. It cuts the wait short, for its own exit ends this rank.
    """
    time.sleep(LAST_WORD_S)


def point_upwards() -> None:
    """Let the lines of torchrun end with a word on where the message stands, in place of "To enable traceback see ...".

    It prints some forty of them whenever a rank fails, below what the rank has said; no rank can keep it from that.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):  # the message itself stands on the terminal already
            Path(file).write_text(json.dumps({"message": ABOVE, "timestamp": int(time.time())}))


def spare_the_restarts() -> None:
    """After a mistake, end torchrun if it would start the ranks again: they would meet it and say it once more.

    On one node only: where one of several torchruns ends, the others wait ten minutes for it to come back.
    """
    read = os.environ.get
    left = int(read("TORCHELASTIC_MAX_RESTARTS", "0")) - int(read("TORCHELASTIC_RESTART_COUNT", "0"))
    if left > 0 and read("GROUP_WORLD_SIZE") == "1":
        os.kill(os.getppid(), signal.SIGTERM)
