"""Tell the ranks of a node which content of a file the one that tokenises it has read.

The ranks meet before there is a process group, in the cache directory. A rank that waits for tokens of other rows than
the builder reads would wait for ever: the note tells "another file" from "still building".
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
from pathlib import Path
from typing import Any

from sft.files import replace_file

_numbers = itertools.count()
_keys: dict[str, str] = {}  # of the caches that this process opened or builds, by number; ranks open them in one order


def next_number() -> int:
    """Return how many caches this process has opened before: 0 for the first."""
    return next(_numbers)


def leave_note(cache_dir: Path, number: int, key: str) -> None:
    """Write down under which key this process opens its cache of that number. For the one that builds on its node."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1:
        return  # nobody waits
    _remove_old_notes(cache_dir)
    _keys[str(number)] = key
    note = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "keys": _keys}
    replace_file(_note(cache_dir), json.dumps(note).encode())


def key_of_builder(cache_dir: Path, number: int) -> str | None:
    """Return the key under which the builder of this node opens its cache of that number; None while nobody knows.

    A note counts only while the process that wrote it lives: another launch may have left one under the same name.
    """
    note = _read(_note(cache_dir))
    return note["keys"].get(str(number)) if note and _lives(note) else None


def _note(cache_dir: Path) -> Path:
    """Return the file for the ranks of this node, of this launch, of this restart."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "TORCHELASTIC_RESTART_COUNT")
    launch = [socket.gethostname(), *(os.environ.get(name, "") for name in names)]
    return cache_dir / f".{hashlib.sha256(repr(launch).encode()).hexdigest()[:16]}.note"


def _remove_old_notes(cache_dir: Path) -> None:
    for path in cache_dir.glob(".*.note"):
        note = _read(path)
        if note and note["host"] == socket.gethostname() and not _lives(note):
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(path.read_bytes())
        return note if note["pid"] and note["host"] and isinstance(note["keys"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lives(note: dict[str, Any]) -> bool:
    return _started(note["pid"]) == note.get("started")


def _started(pid: int) -> str:
    """When a process of this machine began, in ticks since boot: the same number may be another process later."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "gone"
