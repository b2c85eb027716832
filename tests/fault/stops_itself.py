"""The trainer's command in a process that stops itself before its N-th call that changes files below a directory.

    python -m tests.fault.stops_itself DIRECTORY N CALLS overrides...

Stopped (SIGSTOP), with all its threads and children, it holds still at a place that is the same in every run: whoever
started it then kills it, cuts the power of its disk, or fills that. N = 0: it never stops. The calls go into the file
CALLS, one per line. There is no hook in the trainer: Python itself tells of files that are opened, renamed and removed
(sys.addaudithook); fsync, of which it does not tell, is wrapped.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.warm import run_as_main

CHANGES = {
    "os.rename": (0, 2),
    "os.remove": (0, 1),
    "os.mkdir": (0, 2),
    "os.rmdir": (0, 1),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
}
"""Which argument of the event is the path that changes, and which one the directory that it is relative to, or -1."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Watch:
    """Count the calls that change files below `directory`, and stop before the one of that number."""

    def __init__(self, directory: Path, number: int, calls: Path):
        self._directory, self._number = directory, number
        self._log = calls.open("a", buffering=1)
        self._count = multiprocessing.Value("i")  # of this process and its children together

    def begin(self) -> None:
        """From here on; for the children that are forked as well."""
        sys.addaudithook(self._hear)
        os.fsync = self._noting(os.fsync)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and isinstance(flags, int) and flags & WRITES:
                self._note(event, path)
        elif event in CHANGES:
            path, directory = CHANGES[event]
            self._note(event, arguments[path], arguments[directory])

    def _noting(self, fsync: Any) -> Any:
        def noted(descriptor: int) -> None:
            self._note("os.fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
            fsync(descriptor)

        return noted

    def _note(self, what: str, path: Any, directory: int = -1) -> None:
        whole = Path(os.fsdecode(path))
        if directory >= 0:
            whole = Path(f"/proc/self/fd/{directory}").readlink() / whole
        if not whole.absolute().is_relative_to(self._directory):
            return
        with self._count:
            self._count.value += 1
            self._log.write(f"{what} {whole}\n")
            if self._count.value == self._number:
                os.killpg(0, signal.SIGSTOP)


if __name__ == "__main__":
    directory, number, calls, *overrides = sys.argv[1:]
    Watch(Path(directory), int(number), Path(calls)).begin()
    run_as_main("sft.fsdp_sft_trainer", overrides)
