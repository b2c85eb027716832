"""Whether the entries of data.train_files and its like lead to files, before anything is read."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sft.config.checks.packages import is_importable
from sft.config.problems import from_here

DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".arrow", ".feather", ".gz", ".zst", ".bz2")
ABOUT_DATA = re.compile(
    r"(dataset_infos?|dataset_dict|state|package|.*config|tokenizer.*|vocab|special_tokens_map|added_tokens|.*index)\.json"
)
"""Files of JSON that hold no rows."""
DATASET_ID = re.compile(
    r"(?!.*\.(parquet|jsonl|json|csv|txt|gz)$)"  # a file, and none of the hub
    r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?P<folder>(/[\w.-]+)*)(:(?P<split>[A-Za-z_]\w*))?"
)
"""A data set of the hub: org/name, org/name:split or org/name/folder:split."""


def files_below(directory: Path) -> Iterator[Path]:
    """Yield what is no directory below this one, behind links to directories too, each real directory once."""
    seen = set[str]()
    for root, folders, names in os.walk(directory, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root) / name for name in names)


@dataclass(frozen=True)
class ConfigOfDirectory:
    """A configuration that the README of a data set's directory declares, and a split of it (None: train)."""

    directory: Path
    name: str
    split: str | None


def config_of_directory(spec: str) -> ConfigOfDirectory | None:
    """Return what DIR/NAME or DIR/NAME:SPLIT names, where the README.md of DIR declares NAME, and no such path exists;
    else None.
    """
    base, colon, split = spec.rpartition(":")
    path = Path(base if colon else spec)
    readme = path.parent / "README.md"
    if not path.name or path.exists() or not readme.is_file():
        return None
    declared = re.findall(r"^\W*config_name:\s*(.+?)\s*$", readme.read_text(errors="replace"), re.MULTILINE)
    if path.name not in [name.strip("'\"") for name in declared]:
        return None
    return ConfigOfDirectory(path.parent, path.name, split if colon else None)


def complaint_about_file(file: str) -> str | None:
    """Return what is wrong with an entry of data.train_files, as far as its name and the file system show."""
    try:
        return _complaint_about_place(file)
    except OSError as error:
        return f"cannot be looked for ({error.strerror}); check the path and its permissions."


def _complaint_about_place(file: str) -> str | None:
    kinds = " or ".join(f"*{suffix}" for suffix in DATA_SUFFIXES)
    path = Path(file)
    if path.is_dir():
        below = files_below(path)
        if any(inside.suffix.lower() in DATA_SUFFIXES and not ABOUT_DATA.fullmatch(inside.name) for inside in below):
            return None
        return f"is a directory without any {kinds}; give the directory that holds the rows."
    if path.exists() or Path(file.rpartition(":")[0] or file).is_dir() or config_of_directory(file):  # DIR:SPLIT
        return None
    if "://" in file:
        return _complaint_about_address(file)
    if glob.has_magic(file):
        return None if glob.glob(file, recursive=True) else f"matches no file{from_here(path)}."  # noqa: PTH207
    if DATASET_ID.fullmatch(file):
        return None
    return f"does not exist{from_here(path)}; set the path of a file with rows (docs/data.md lists the kinds)."


def _complaint_about_address(file: str) -> str | None:
    from fsspec.registry import known_implementations, registry  # a tenth of a second, paid by those who give one

    protocol = file.partition("://")[0]
    if protocol in registry:
        return None
    if protocol not in known_implementations:
        return f"begins with {protocol}://, which fsspec does not know; copy the files to this machine first."
    package = known_implementations[protocol]["class"].partition(".")[0]
    return None if is_importable(package) else f"needs {package}, which is not installed: pip install {package}."
