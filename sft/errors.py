"""The one exception that blames the user's input."""


class InputError(ValueError):
    """Something the user gave cannot be used: the message names the knob or file:row, what was found, what was
    expected and a way out. The command prints it without a traceback and exits with code 2; every other exception
    is a bug of ours and keeps its traceback.
    """
