"""Tell the ranks of a node which content of a file the one that tokenises it has read.

The ranks meet before there is a process group, in the cache directory. A rank that waits for tokens of other rows than
the builder reads would wait for ever: the note tells "another file" from "still building". It also says which caches
the builder has read whole, so that one rank of a node hashes them and not each.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sft.files import replace_file

_numbers = itertools.count()
_keys: dict[str, str] = {}  # of the caches that this process opened or builds, by number; ranks open them in one order
_whole: set[str] = set()  # numbers of those that it has read whole


class Word(NamedTuple):
    """What the builder of a node says of a cache: the key under which it opens it, and whether it found it whole."""

    key: str
    is_whole: bool


def next_number() -> int:
    """Return how many caches this process has opened before: 0 for the first."""
    return next(_numbers)


def leaves_notes() -> bool:
    """Return whether the ranks of this node tell each other: not where there is only one, nor without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1


def leave_note(cache_dir: Path, number: int, key: str) -> None:
    """Write down under which key this process opens its cache of that number. For the one that builds on its node."""
    _keys[str(number)] = key
    _write(cache_dir)


def note_whole(cache_dir: Path, number: int) -> None:
    """Write down that every byte of the cache of that number was read against its seal, or has just been written."""
    _whole.add(str(number))
    _write(cache_dir)


def word_of_builder(cache_dir: Path, number: int) -> Word | None:
    """Return what the builder of this node says of its cache of that number; None while nobody knows.

    A note counts only while the process that wrote it lives: another launch may have left one under the same name.
    """
    note = _read(_note(cache_dir))
    key = note["keys"].get(str(number)) if note and _lives(note) else None
    return Word(key, str(number) in note["whole"]) if note and key else None


def _write(cache_dir: Path) -> None:
    if leaves_notes():
        keys = {"keys": _keys, "whole": sorted(_whole)}
        note = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())} | keys
        with suppress(OSError):  # a cache that was filled beforehand may be read-only: then each rank looks itself
            _remove_old_notes(cache_dir)
            replace_file(_note(cache_dir), json.dumps(note).encode())


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
        is_note = note["pid"] and note["host"] and isinstance(note["keys"], dict) and isinstance(note["whole"], list)
        return note if is_note else None
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
