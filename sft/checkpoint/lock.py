"""Let one job at a time use a run directory: two that write the same checkpoints would ruin both."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sft.errors import InputError
from sft.parallel.world import World, on_main_rank

LOCK = ".lock"


@contextmanager
def sole_use_of(run_dir: Path, world: World) -> Iterator[None]:
    """Hold `run_dir` for the length of a run. Raises InputError on all ranks if another job holds it.

    The kernel releases the lock of a process that is gone, however it went: a stale lock file blocks nobody.
    """
    held: list[int] = []
    on_main_rank(f"locking {run_dir}", lambda: held.append(_lock(run_dir)))
    try:
        yield
    finally:
        for descriptor in held:
            with suppress(OSError):  # a directory that is read-only or gone has ended the run with its own message
                (run_dir / LOCK).unlink()  # while it is held: whoever comes next makes a new one
            os.close(descriptor)


def _lock(run_dir: Path) -> int:
    run_dir.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InputError(
                f"another job is training in {run_dir} ({holder}). Wait for it, stop it (touch {run_dir / 'stop_now'} "
                "lets it save first), or set another trainer.default_local_dir."
            ) from None
        if _is_still_there(descriptor, run_dir / LOCK):
            break
        os.close(descriptor)  # its last holder removed it while we waited for the lock
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
    return descriptor


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"host {holder['host']}, process {holder['pid']}"
    except (ValueError, KeyError, TypeError):
        return "it is just starting"


def _is_still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
