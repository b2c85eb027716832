"""A fake that notes what is on the disk for certain, and so what a power cut would leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Disk:
    """Notes what every fsync brought to the disk, and at every rename what under its source was not there yet.

    A file counts as brought with the bytes it had, a directory with the names it had.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.brought: dict[int, object] = {}  # by inode, which a rename keeps
        self.renames: list[tuple[str, str, list[str]]] = []  # (from, to, what was not on the disk)
        self.events: list[str] = []  # `fsync NAME` and `rename NAME`
        fsync = os.fsync

        def note_fsync(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            self.brought[path.stat().st_ino] = _content(path)
            self.events.append(f"fsync {path.name}")

        monkeypatch.setattr(os, "fsync", note_fsync)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name)))

    def _noting(self, move):
        def moved(source, target, **options):
            self.renames.append((Path(source).name, Path(target).name, self.missing(Path(source))))
            self.events.append(f"rename {Path(target).name}")
            move(source, target, **options)

        return moved

    def missing(self, path: Path) -> list[str]:
        """Return the names at and below `path` that a power cut now could take or cut short."""
        everything = [path, *path.rglob("*")] if path.is_dir() else [path]
        return sorted(each.name for each in everything if self.brought.get(each.stat().st_ino) != _content(each))


def _content(path: Path) -> object:
    return sorted(each.name for each in path.iterdir()) if path.is_dir() else path.read_bytes()
