"""Files that survive: on the disk when the call returns, and on the disk once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file; its content is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """The names in it are on the disk when this returns."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_weights(source: str, target: str) -> None:
    """Copy a file (for shutil.copytree); as a hard link if it holds weights, which are replaced and never edited."""
    if source.endswith(".safetensors"):
        try:
            return os.link(source, target)
        except OSError:
            pass  # a file system without hard links
    shutil.copyfile(source, target)
    return None
