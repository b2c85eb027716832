"""Copy the files behind an address (s3://, gs://, hf://, https://, ...) to this machine, each once, by fsspec.

A copy carries the version that its original had, so that what has changed there is copied again. Credentials are the
library's own business: environment variables and its configuration files.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from sft.errors import InputError

ABOUT_SPLITS = ("README.md", "dataset_dict.json", "state.json", "dataset_info.json")
"""Files that say how those beside them are to be read (files.files_of_directory)."""

VERSION = ".version"
"""Ends the name of the hidden file beside a copy that holds the version of its original."""


def is_address(spec: str) -> bool:
    """Return True for PROTOCOL://..., which is no path of this machine."""
    return "://" in spec


def copied(
    address: str, copies: Path, data_in: Callable[[list[Path]], list[Path]], say: Callable[[str], None]
) -> list[Path] | Path:
    """Bring what an address stands for below `copies`; return its files, or the directory if it is one.

    data_in: picks those of a directory's paths that are data

    Raises InputError where there is nothing, or it cannot be read.
    """
    import fsspec

    try:
        files, root = fsspec.url_to_fs(address)
        if glob.has_magic(root):
            there, is_directory = sorted(files.glob(root)), False
            root = str(PurePosixPath(root[: root.index(next(filter(glob.has_magic, root)))]).parent)
        elif is_directory := files.isdir(root):
            there = _told_by(sorted(files.find(root)), root, data_in)
        else:
            there, root = [root], str(PurePosixPath(root).parent)
        if not there:
            raise InputError(f"no data files at {address}; check the address.")
        # A directory has a mirror of its own, from which others' files are removed, and to which none are added.
        mirror = copies / hashlib.sha256(f"{files.protocol} {root} {is_directory}".encode()).hexdigest()[:16]
        mirror.mkdir(parents=True, exist_ok=True)
        with FileLock(mirror / ".lock"):
            here = [_copy(files, path, mirror / PurePosixPath(path).relative_to(root), say) for path in there]
            if is_directory:
                _remove_others(mirror, here)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no data files at {address}; check the address.") from error
    except Exception as error:  # each protocol has its own: a network that is away, credentials that are missing
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{address} cannot be read ({reason}); check the address, the network, and the credentials in the "
            "environment."
        ) from error
    return mirror if is_directory else here


def _told_by(paths: Sequence[str], root: str, data_in: Callable[[list[Path]], list[Path]]) -> list[str]:
    """Return those of a directory's paths that are data, or say which of them are of a split."""
    inside = {Path(PurePosixPath(path).relative_to(root)): path for path in paths}
    data = data_in(list(inside)) or [path for path in inside if path.suffix == ".arrow"]
    return [path for here, path in inside.items() if here in data or (data and here.name in ABOUT_SPLITS)]


def _copy(files: Any, path: str, target: Path, say: Callable[[str], None]) -> Path:
    version, stamp = str(files.ukey(path)), target.with_name(f".{target.name}{VERSION}")
    if not (target.is_file() and stamp.is_file() and stamp.read_text() == version):
        say(f"copying {files.unstrip_protocol(path)} to {target.parent}")
        stamp.unlink(missing_ok=True)  # first: a copy that is cut short has no version
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.partial")
        files.get_file(path, str(aside))
        aside.replace(target)
        stamp.write_text(version)
    return target


def _remove_others(mirror: Path, copies: Sequence[Path]) -> None:
    """Remove copies of files that are no longer at the address."""
    for path in mirror.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and path not in copies:
            path.unlink()
