"""The one exception that blames the user's input, and the manners of ranks that say it."""

import time

LAST_WORD_S = 10.0


class InputError(ValueError):
    """Something the user gave cannot be used: the message names the knob or file:row, what was found, what was
    expected and a way out. The command prints it without a traceback and exits with code 2; every other exception
    is a bug of ours and keeps its traceback.
    """


def let_another_rank_speak() -> None:
    """Wait before exiting, on a rank whose message another one prints: torchrun ends all ranks at the first exit.

    The one that speaks may still be importing. It cuts the wait short, for its own exit ends this rank.
    """
    time.sleep(LAST_WORD_S)
