"""Let one job at a time use a run directory: two that write the same checkpoints would ruin both."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sft.errors import InputError
from sft.parallel.world import on_main_rank

LOCK = ".lock"


@contextmanager
def sole_use_of(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for the length of a run. Raises InputError on all ranks if another job holds it.

    The kernel releases the lock of a process that is gone, however it went: a stale lock file blocks nobody.
    """
    held: list[FileLock] = []
    on_main_rank(f"locking {run_dir}", lambda: held.append(_lock(run_dir)))
    try:
        yield
    finally:
        for lock in held:
            with suppress(OSError):  # a directory that is read-only or gone has ended the run with its own message
                (run_dir / LOCK).unlink()  # while it is held: whoever comes next makes a new one
            lock.release()


def _lock(run_dir: Path) -> FileLock:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"trainer.default_local_dir={run_dir} cannot be made ({error.strerror}); set a directory of your own."
        ) from error
    path = run_dir / LOCK
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another job is training in {run_dir} ({_holder(path)}). Wait for it, stop it (touch "
            f"{run_dir / 'stop_now'} lets it save first), or set another trainer.default_local_dir."
        ) from None
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    return lock


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"host {holder['host']}, process {holder['pid']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it is just starting, or just ending"
