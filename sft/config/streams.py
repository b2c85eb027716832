"""Keep standard output and standard error usable, whoever reads them: `| head`, a closed terminal, `>&-`.

A run must not end, and least of all in the middle of a save, because nobody reads any more what it says. Libraries
write to standard error as well, so it is the streams that are made steady, and not each print. Nor may the traceback of
a bug show a terminal what rows hold, or a password: Python's own would.
"""

from __future__ import annotations

import errno
import io
import locale
import os
import sys
import traceback
from types import TracebackType
from typing import TextIO

from sft.config.secrets import presentable
from sft.files import is_of_the_machine

NOBODY_READS = (errno.EPIPE, errno.EIO)
"""A pipe whose reader is gone; a terminal that is closed."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def steady_streams(*, out_is_a_log: bool = False) -> None:
    """Open what is closed of 0, 1 and 2, let writing go on into nothing where nobody reads any more, and show uncaught
    exceptions as text that a terminal does not obey. Files are read as UTF-8 from here on, whatever the locale.

    out_is_a_log: standard output may end in a full disk as well. Where it is what a command makes, that is an error

    What stands in place of Python's own stream, a test's capture for one, stays.
    """
    _begin_again_in_utf8()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened becomes the place where prints go
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _steady(sys.stdout, 1, (*NOBODY_READS, *FULL) if out_is_a_log else NOBODY_READS)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _steady(sys.stderr, 2, (*NOBODY_READS, *FULL))
    sys.excepthook = _show


def _begin_again_in_utf8() -> None:
    """Start this command again in Python's UTF-8 mode where the locale means another encoding (LC_ALL=en_US, say).

    Rows, templates, tokenizers and paths are UTF-8 wherever they are read, by libraries as well; the terminal's
    encoding stays the locale's. Python turns the mode on by itself where there is no locale.
    """
    encoding = locale.getpreferredencoding(False)
    is_a_command = "-m" in sys.orig_argv or os.path.basename(sys.argv[0]).startswith("sft-")  # noqa: PTH119
    if encoding.lower() not in ("utf-8", "utf8") and not sys.flags.utf8_mode and is_a_command:
        shown = {"PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING", f"{encoding}:backslashreplace")}
        os.execve(sys.executable, sys.orig_argv, os.environ | shown | {"PYTHONUTF8": "1"})


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    told = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    if isinstance(error, OSError) and is_of_the_machine(error):
        told = f"error: {error}. It is a disk, a mount or a limit: df, quota and ulimit -a show which."
    print(presentable(told), file=sys.stderr, flush=True)


def _steady(stream: TextIO | None, number: int, forgiven: tuple[int, ...]) -> TextIO:
    """Return a text stream like `stream` (None: it was closed) on file `number`."""
    if stream is not None:
        stream.flush()
    is_terminal = os.isatty(number)
    return io.TextIOWrapper(
        io.BufferedWriter(_Steady(number, forgiven)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",  # a name that an ASCII terminal cannot show is no reason to end either
        line_buffering=is_terminal or number == 2,
    )


class _Steady(io.FileIO):
    """A file whose bytes go to /dev/null from the first write on that fails in a forgiven way."""

    def __init__(self, number: int, forgiven: tuple[int, ...]):
        super().__init__(number, "wb", closefd=False)
        self._forgiven = forgiven

    def write(self, data, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._forgiven:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for libraries in C as well
            os.close(nowhere)
            return len(data)
