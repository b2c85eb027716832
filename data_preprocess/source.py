"""Files or a hub data set -> named rows, split by split.

A row is known by its `where` in every message about it: "train.jsonl:12", lines counted from 1; "train.parquet:0",
rows of parquet, of JSON arrays and of the hub counted from 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NamedRow = tuple[str, dict[str, Any]]
SPLITS = ("train", "validation", "test")
SUFFIXES = (".parquet", ".jsonl", ".json")
WAY_OUT = "or give --local_dataset_path, a file or directory with its rows."
SPLIT_NAME = re.compile(r"(train|test|validation|valid|val|dev)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Rows:
    """The rows of one split, in the order of their files; every call of `read` begins anew."""

    read: Callable[[], Iterator[NamedRow]]
    expected: int | None  # about so many, for the progress bar
    files: tuple[Path, ...] = ()  # where they are read from, if from files


def open_source(path: Path | None, *, hub_id: str | None, hub_config: str | None = None) -> dict[str, Rows]:
    """Return the splits of a file, of a directory, or without a path of the hub's data set: some of train, validation,
    test.

    A file belongs to the split its name begins with ("test-00000-of-00002.parquet"), else to train. In a directory
    where some files are named so, only those are read. Raises ValueError naming what is not there.
    """
    if path is not None:
        files = _files(path.expanduser())
        return {split: _rows_of(files[split]) for split in SPLITS if split in files}
    if hub_id is None:
        raise ValueError("no source: give --local_dataset_path, a file or a directory, or --dataset, a hub id.")
    return _hub(hub_id, hub_config)


def _files(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {_split(path.stem) or "train": [path]}
    if not path.is_dir():
        raise ValueError(f"--local_dataset_path={path} does not exist.")
    files = _data_files(path) or _data_files(path / "data")  # where clones of hub repositories keep them
    if not files:
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        raise ValueError(f"{path} holds no {', '.join(SUFFIXES)} file, it holds {inside}; check --local_dataset_path.")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split(file.stem) or "", []).append(file)
    unnamed = splits.pop("", [])
    splits = splits or {"train": unnamed}
    stems = [file.stem for of_split in splits.values() for file in of_split]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"{path} holds {', '.join(twice)} in several formats; move all but one away.")
    return splits


def _data_files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))


def _split(name: str) -> str | None:
    match = SPLIT_NAME.match(name)
    if match is None:
        return None
    word = match[1].lower()
    return word if word in ("train", "test") else "validation"


def _rows_of(files: list[Path]) -> Rows:
    def read() -> Iterator[NamedRow]:
        for file in files:
            yield from _read(file)

    counts = [_count(file) for file in files]
    return Rows(read, None if None in counts else sum(count or 0 for count in counts), tuple(files))


def _count(path: Path) -> int | None:
    """Rows of the file where that is cheap to know. Raises ValueError for a file that holds none."""
    with path.open("rb") as file:
        head = file.read(64)
        if not head.strip():
            raise ValueError(f"{path} is empty.")
        if head.startswith(b"version https://git-lfs"):
            raise ValueError(f"{path} is a git-lfs pointer, not the data; run `git lfs pull` where you cloned it.")
        if path.suffix == ".parquet":
            return _parquet(path).metadata.num_rows
        if _is_array(head):
            return None
        return head.count(b"\n") + sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _is_array(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file ({error}).") from error


def _read(path: Path) -> Iterator[NamedRow]:
    if path.suffix == ".parquet":
        batches = _parquet(path).iter_batches(batch_size=1024)
        return _from_arrow(path.name, (row for batch in batches for row in batch.to_pylist()))
    with path.open("rb") as file:
        is_array = _is_array(file.read(64))
    return _read_array(path) if is_array else _read_lines(path)


def _read_lines(path: Path) -> Iterator[NamedRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.name}:{number}"
            text = _decode(line, where)
            if text.strip():
                yield where, _object(_parse(text, where), where)


def _read_array(path: Path) -> Iterator[NamedRow]:
    return _numbered(path.name, _parse(_decode(path.read_bytes(), path.name), path.name))


def _from_arrow(name: str, rows: Iterable[Any]) -> Iterator[NamedRow]:
    """Return the rows without the keys that Arrow filled with null, since siblings have them; columns stay."""
    for where, row in _numbered(name, rows):
        yield where, {column: _without_nulls(value) for column, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _numbered(name: str, rows: Any) -> Iterator[NamedRow]:
    for number, row in enumerate(rows):
        yield f"{name}:{number}", _object(row, f"{name}:{number}")


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8; convert the file to UTF-8.") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 40) : error.pos + 40]
        raise ValueError(
            f"{where}: not JSON ({error.msg} at {near!r}); expected one object per line, or one array of objects."
        ) from error


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with columns, found {row!r:.80}.")
    return row


def _hub(hub_id: str, hub_config: str | None) -> dict[str, Rows]:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports] - optional
    except ImportError as error:
        raise ValueError(
            f"{hub_id} from the hub needs the datasets package: pip install datasets; {WAY_OUT}"
        ) from error
    try:
        found = load_dataset(hub_id, hub_config)
    except Exception as error:  # of many kinds: network, permission, name, configuration, builder
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        raise ValueError(f"cannot read {hub_id} from the hub ({reason}); try again, {WAY_OUT}") from error
    splits: dict[str, Rows] = {}
    for name, rows in found.items():
        split = _split(str(name)) or "train"
        if split in splits:
            names = ", ".join(map(str, found))
            raise ValueError(f"{hub_id} has several splits for {split} ({names}); download what you want, {WAY_OUT}")
        splits[split] = Rows(partial(_from_arrow, f"{hub_id}/{name}", rows), len(rows))
    return splits
