"""Files -> rows.

A row is a dict of columns, known by its `where` ("train.jsonl:12", line counted from 1; "train.parquet:0", row
counted from 0) in every message about it.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sft.config.checks.data_files import ABOUT_DATA, config_of_directory, files_below
from sft.config.values import expand_home
from sft.config.visible import visible_line
from sft.data.rows import hub, remote
from sft.data.rows.readers import BINARY, READERS, count_rows
from sft.data.rows.splits import by_split, configs_in, files_of_config, one_of, split_of
from sft.data.rows.unpacked import COMPRESSED, is_compressed, kind_of
from sft.data.types import Row
from sft.errors import InputError

__all__ = ["count_rows", "expand_files", "fingerprint_file", "names_of", "read_rows"]

COPIES = Path(expand_home("~/.cache/sft/copies"))
"""Where files behind an address are copied to, unless data.cache_dir says otherwise."""

SEARCHED_SUFFIXES = (".parquet", ".jsonl")
"""What a directory is searched for first. Where it has none, other kinds of files count, but for ABOUT_DATA."""

OTHER_KINDS = {
    b"version https://git-lfs": ("is a git-lfs pointer, not the data; run `git lfs pull` where you cloned it.", ()),
    b"\x1f\x8b": ("is compressed with gzip; name it *.gz, as in rows.jsonl.gz.", (".gz",)),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd; name it *.zst, as in rows.jsonl.zst.", (".zst",)),
    b"PK\x03\x04": ("is a zip archive; unpack it.", ()),
    b"ARROW1": ("is an Arrow file; name it *.arrow.", (".arrow", ".feather")),
    b"\xff\xfe\0\0": ("is UTF-32; convert it with `iconv -f UTF-32 -t UTF-8`.", ()),
    b"\xff\xfe": ("is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`.", ()),
    b"\xfe\xff": ("is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`.", ()),
}
"""First bytes of files that are often given in place of the data, what to do, and with which suffixes they are read."""

OTHER_SUFFIXES = {
    **dict.fromkeys((".tar", ".tgz", ".zip", ".7z", ".rar"), "is an archive; unpack it."),
    **dict.fromkeys((".xz", ".lz4", ".lzma"), "is compressed by neither gzip nor zstd; unpack it."),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "is a spreadsheet; save it as CSV."),
}
"""Suffixes of what else is often given, and what to do."""


def expand_files(
    specs: Iterable[str], say: Callable[[str], None] = lambda line: None, *, copies: Path = COPIES
) -> list[Path]:
    """Return the files of paths, globs, directories, addresses and hub ids; each spec's sorted, specs in their order.

    copies: the directory for files that lie behind an address

    Hidden files and directories are no data. Raises InputError for a spec that leads to no file.
    """
    files: list[Path] = []
    for spec in specs:
        path = Path(spec)
        if remote.is_address(spec):
            files += _files_at(spec, copies, say)
            continue
        _check_reachable(path)
        directory, split = directory_named(spec)
        if configured := None if directory else config_of_directory(spec):
            found = files_of_directory(configured.directory, configured.split, say, configured.name)
        elif directory is not None:
            found = files_of_directory(directory, split, say)
        elif path.exists() or path.is_symlink():
            found = [path]
        elif (dataset := hub.dataset_named(spec)) and not glob.has_magic(spec):
            found = hub.files_of(dataset, data_in, say)
        else:
            found = sorted(Path(match) for match in glob.glob(spec, recursive=True))  # noqa: PTH207 - may be absolute
        if not found:
            kinds = " or ".join(f"*{suffix}" for suffix in SEARCHED_SUFFIXES)
            there = _what_is_in(path) if path.is_dir() else ""
            there += "; lines of text are read by name: *.txt" if ".txt" in there else ""
            raise InputError(f"no data files at {spec} (a directory is searched for {kinds}){there}; check the path.")
        files += found
    return files


def names_of(paths: Iterable[Path]) -> dict[Path, str]:
    """Return what messages call each file: the end of its path, as much of it as tells it from the others.

    data/train.jsonl -> "train.jsonl"; a/train.jsonl and b/train.jsonl -> "a/train.jsonl" and "b/train.jsonl"
    """
    parts = {path: path.absolute().parts for path in paths}
    names: dict[Path, str] = {}
    for length in itertools.count(1):
        alike = Counter(of_path[-length:] for of_path in parts.values())
        for path, of_path in parts.items():
            if alike[of_path[-length:]] == 1 or length >= len(of_path):
                names.setdefault(path, "/".join(of_path[-length:]))
        if len(names) == len(parts):
            return {path: visible_line(names[path]) for path in parts}
    raise AssertionError("a whole path is told from all others")


def _files_at(address: str, copies: Path, say: Callable[[str], None]) -> list[Path]:
    """Return the files of an address, ADDRESS or ADDRESS:SPLIT, copied to this machine."""
    base, colon, split = address.rpartition(":")
    named = split if colon and split.isidentifier() else None
    found = remote.copied(base if named else address, copies, data_in, say)
    if isinstance(found, Path):
        return files_of_directory(found, named, lambda line: say(line.replace(str(found), base if named else address)))
    return found


def directory_named(spec: str) -> tuple[Path | None, str | None]:
    """Return the directory and the split of DIR or DIR:SPLIT; (None, None) where the spec is something else."""
    if Path(spec).is_dir():
        return Path(spec), None
    base, colon, split = spec.rpartition(":")
    return (Path(base), split) if colon and base and split.isidentifier() and Path(base).is_dir() else (None, None)


def files_of_directory(directory: Path, split: str | None, say: Callable[[str], None], config: str = "") -> list[Path]:
    """Return the data files of a directory: of what `save_to_disk` wrote, of a data set with splits, or all below it.

    Where a README declares splits, or files are called after validation or test, it is one split: train if none is
    named. What is left out is said. config: of those that the README declares; "": the only one, or the default
    """
    if (directory / "dataset_dict.json").is_file():
        splits = json.loads((directory / "dataset_dict.json").read_text()).get("splits", [])
        chosen = one_of(dict.fromkeys(splits), str(directory), split)
        say(f"{directory}: saved by save_to_disk; {chosen} of its splits {', '.join(splits)}")
        return _saved(directory / chosen)
    if (directory / "state.json").is_file() and any(directory.glob("*.arrow")):
        return _saved(directory)
    inside = sorted(path.relative_to(directory) for path in files_below(directory))
    chosen = _of_split(directory, inside, split, config)
    left_out = [path for path in inside if path not in chosen and not _is_hidden(path)]
    if left_out:
        kinds = ", ".join(path.as_posix() for path in left_out[:6]) + (", …" if len(left_out) > 6 else "")
        say(f"{directory}: {len(chosen)} of {len(inside)} files are read; left out: {kinds}")
    return [directory / path for path in chosen]


def _of_split(directory: Path, inside: list[Path], split: str | None, config: str) -> list[Path]:
    readme = directory / "README.md"
    if readme.is_file() and (configs := configs_in(readme.read_text(errors="replace"))):
        return files_of_config(configs, data_in(inside, every=True), str(directory), config, split)
    found = data_in(inside)
    splits = by_split(found)
    named = {name: paths for name, paths in splits.items() if name is not None}
    if split is None:
        bases = {name for of_base in ("train", "validation", "test") for name in named if name.startswith(of_base)}
        training = [name for name in bases if name.startswith("train")]
        if not training and (without := [path for path in found if split_of(path) not in bases]):
            return without  # rows.jsonl beside test.jsonl
        if not training or len(training) == len(bases):
            return found  # no splits: all there is
        if len(training) > 1:
            raise InputError(
                f"{directory}: several splits begin with train ({', '.join(sorted(training))}); name one of them: "
                f"{directory}:{sorted(training)[0]}, or the files."
            )
        return named[training[0]]
    return named[one_of(named, str(directory), split)]


def _saved(directory: Path) -> list[Path]:
    """Return the Arrow files that `save_to_disk` wrote, in its order."""
    try:
        state = json.loads((directory / "state.json").read_text())
        return [directory / file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{directory} is no directory of save_to_disk (state.json: {error}); save it again."
        ) from error


def data_in(paths: list[Path], *, every: bool = False) -> list[Path]:
    """Return those of a directory's paths that are data: of each split the files of SEARCHED_SUFFIXES, or, where it has
    none, those of other kinds.

    every: all that are data by their names, for a README to choose from
    """
    found = sorted(filter(_may_be_data, paths))
    if every:
        return found
    return sorted(path for of_split in by_split(found).values() for path in [*filter(is_data, of_split)] or of_split)


def _may_be_data(path: Path) -> bool:
    """Whether a file is read in a directory that has neither parquet nor JSONL."""
    kind = kind_of(path)
    return kind in READERS and kind != ".txt" and not ABOUT_DATA.fullmatch(path.name) and not _is_hidden(path)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _what_is_in(directory: Path) -> str:
    inside = sorted(path.relative_to(directory).as_posix() for path in files_below(directory))
    return f"; it holds {', '.join(inside[:6])}{', …' if len(inside) > 6 else ''}" if inside else "; it is empty"


def is_data(path: Path) -> bool:
    """Whether a directory that is searched has data at this path, relative to it: of a known suffix, and not hidden."""
    return path.suffix.lower() in SEARCHED_SUFFIXES and not _is_hidden(path)


def _check_reachable(path: Path) -> None:
    """Raise InputError for a path of which the system does not even say whether it is there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise InputError(
            f"{visible_line(str(path))[:200]} cannot be looked for ({getattr(error, 'strerror', error)}); check the "
            "path and its permissions."
        ) from error


def fingerprint_file(path: Path) -> str:
    """Return the sha256 of a file's content, so that a changed row is never served from an old cache."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error


def version_of_file(path: Path) -> tuple[int, int, int]:
    """Return what the file system changes with every write: cheap, and not fooled by a content that comes back."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_rows(path: Path, name: str | None = None) -> Iterator[Row]:
    """Yield every row of a file in file order, a part at a time in memory.

    name: of the file in each row's `where`; None: the last part of its path

    Raises InputError for a file, RowError for a line that is not what its name says.
    """
    _check_kind(path)
    return READERS[kind_of(path)](path, name or path.name)


def _check_kind(path: Path) -> None:
    """Refuse (InputError) a file that is no readable parquet or JSONL file, as far as its first bytes show."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe without a writer would hold us for ever
            raise InputError(f"{path} is a pipe, a socket or a device; expected a parquet or JSONL file.")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error
    if not head:
        raise InputError(
            f"{path} is empty: expected rows (docs/data.md; JSONL has one object per line); write it again, or take "
            "it out."
        )
    if complaint := OTHER_SUFFIXES.get(Path(path.stem).suffix.lower()) or OTHER_SUFFIXES.get(path.suffix.lower()):
        raise InputError(f"{path} {complaint}")
    for magic, (complaint, suffix) in OTHER_KINDS.items():
        if head.startswith(magic) and path.suffix.lower() not in suffix:
            raise InputError(f"{path} {complaint}")
    kind = kind_of(path)
    if kind not in READERS or (is_compressed(path) and kind in BINARY):
        raise InputError(
            f"{path}: expected {', '.join(f'*{suffix}' for suffix in READERS)}, or text of them with "
            f"{', '.join(COMPRESSED)} behind it; found {path.suffix or 'no'} suffix. Convert the file, or rename it if "
            "that is what it holds."
        )
    if (kind == ".parquet") != head.startswith(b"PAR1"):
        found = "does not start as parquet does" if kind == ".parquet" else "is parquet"
        raise InputError(
            f"{path} {found} (first bytes {head[:16]!r}): not a readable {kind[1:]} file. "
            "Rename it to what it holds, or download it again."
        )
    if kind not in BINARY and not is_compressed(path) and b"\0" in head:
        raise InputError(f"{path} holds NUL bytes: it is no text, or not UTF-8; expected one JSON object per line.")
