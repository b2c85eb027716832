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
from typing import Any

from sft.data.chat.values import plain
from sft.data.rows import hub
from sft.data.types import Row, RowError
from sft.errors import InputError
from sft.visible import visible_line

SEARCHED_SUFFIXES = (".parquet", ".jsonl")
"""What a directory is searched for. A .json is read where it is named: among data it is mostly about the data."""

OTHER_KINDS = {
    b"version https://git-lfs": "is a git-lfs pointer, not the data; run `git lfs pull` where you cloned it.",
    b"\x1f\x8b": "is compressed with gzip; unpack it with `gunzip -k`.",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it with `zstd -d`.",
    b"PK\x03\x04": "is a zip archive; unpack it.",
    b"ARROW1": "is an Arrow file; write it as parquet: datasets.Dataset.from_file(...).to_parquet(...).",
    b"\xff\xfe": "is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`.",
    b"\xfe\xff": "is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`.",
}
"""First bytes of files that are often given in place of the data, and what to do about them."""


def expand_files(specs: Iterable[str], say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """The files that paths, globs, directories and hub ids stand for; each spec's sorted, specs in their own order.

    Hidden files and directories are no data. Raises InputError for a spec that leads to no file.
    """
    files: list[Path] = []
    for spec in specs:
        path = Path(spec)
        if path.is_dir():
            found = data_files_in(path)
        elif path.exists() or path.is_symlink():
            found = [path]
        elif (dataset := hub.dataset_named(spec)) and not glob.has_magic(spec):
            found = hub.files_of(dataset, is_data, say)
        else:
            found = sorted(Path(match) for match in glob.glob(spec, recursive=True))  # noqa: PTH207 - may be absolute
        if not found:
            kinds = " or ".join(f"*{suffix}" for suffix in SEARCHED_SUFFIXES)
            raise InputError(f"no data files at {spec} (a directory is searched for {kinds}); check the path.")
        files += found
    return files


def names_of(paths: Iterable[Path]) -> dict[Path, str]:
    """What messages call each file: the end of its path, as much of it as tells it from the others.

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


def data_files_in(directory: Path) -> list[Path]:
    """The data files below a directory, sorted."""
    return sorted(path for path in directory.rglob("*") if is_data(path.relative_to(directory)) and not path.is_dir())


def is_data(path: Path) -> bool:
    """Whether a directory that is searched has data at this path, relative to it: of a known suffix, and not hidden."""
    return path.suffix in SEARCHED_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def fingerprint_file(path: Path) -> str:
    """sha256 of the content, so that a changed row is never served from an old cache."""
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


def count_rows(path: Path) -> int:
    """Rows of the file, without reading what they hold."""
    if path.suffix == ".parquet":
        return _open_parquet(path).metadata.num_rows
    with path.open("rb") as file:
        return sum(not line.isspace() for line in file)


def read_rows(path: Path, name: str | None = None) -> Iterator[Row]:
    """Every row of a parquet or JSONL file in file order, a batch at a time in memory.

    name: of the file in each row's `where`; None: the last part of its path

    Raises InputError for a file, RowError for a line that is not what its name says.
    """
    _check_kind(path)
    name = name or path.name
    return _read_parquet(path, name) if path.suffix == ".parquet" else _read_jsonl(path, name)


def _check_kind(path: Path) -> None:
    """Raises InputError for a file that is no readable parquet or JSONL file, as far as its first bytes show."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe without a writer would hold us for ever
            raise InputError(f"{path} is a pipe, a socket or a device; expected a parquet or JSONL file.")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error
    if not head:
        raise InputError(f"{path} is empty: expected parquet, or JSONL with one object per line.")
    for magic, complaint in OTHER_KINDS.items():
        if head.startswith(magic):
            raise InputError(f"{path} {complaint}")
    if path.suffix not in (*SEARCHED_SUFFIXES, ".json"):
        raise InputError(
            f"{path}: expected *.parquet, *.jsonl, or *.json with one object per line; found {path.suffix or 'no'} "
            "suffix. Convert the file, or rename it if that is what it holds."
        )
    if (path.suffix == ".parquet") != head.startswith(b"PAR1"):
        found = "does not start as parquet does" if path.suffix == ".parquet" else "is parquet"
        raise InputError(
            f"{path} {found} (first bytes {head[:16]!r}): not a readable {path.suffix[1:]} file. "
            "Rename it to what it holds, or download it again."
        )
    if path.suffix != ".parquet" and b"\0" in head:
        raise InputError(f"{path} holds NUL bytes: it is no text, or not UTF-8; expected one JSON object per line.")
    if path.suffix != ".parquet" and head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        raise InputError(
            f"{path} begins with '[': found a JSON array, expected one object per line. "
            f"Convert it: jq -c '.[]' {path.name} > {path.stem}.rows.jsonl"
        )


def _open_parquet(path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is not a readable parquet file ({_line(error)}); download or write it again."
        ) from error


def _read_parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa

    index, batches = 0, _open_parquet(path).iter_batches(batch_size=1024)
    while True:
        try:
            batch = next(batches, None)
            rows = batch.to_pylist() if batch is not None else None
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
            raise RowError(
                f"{name}:{index}: this row or one of the next 1,023 cannot be decoded ({_line(error)}); "
                "download or write the file again."
            ) from error
        if rows is None:
            return
        for row in rows:
            # In Arrow every struct has the keys of all its siblings: null says that it has no such key.
            yield f"{name}:{index}", {column: plain(value, drop_nulls=True) for column, value in row.items()}
            index += 1


def _read_jsonl(path: Path, name: str) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{name}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise RowError(
                    f"{where}: byte {error.start} is not UTF-8 ({raw[max(0, error.start - 20) : error.start + 20]!r}); "
                    "convert the file to UTF-8 (iconv -f LATIN1 -t UTF-8, if it is Latin-1)."
                ) from error
            if line:
                yield where, _parse_line(line, where)


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        near = line[max(0, error.pos - 40) : error.pos + 40]
        raise RowError(
            f"{where}: not JSON ({error.msg} at column {error.colno}: {near!r}); expected one object per line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where}: {_line(error)}; expected one JSON object per line.") from error
    if not isinstance(row, dict):
        raise RowError(
            f"{where}: found a JSON {type(row).__name__} ({line[:80]!r}), expected an object with columns; "
            "write one object per line."
        )
    if "\\ud" in line or "\\uD" in line:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"{where}: found a lone surrogate ({error.object[error.start]!r}), half of a character that was cut "
                "in two; expected whole characters. Mend the text, or take the row out."
            ) from error
    return row


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object, and only one of its values can count")
    return row


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value (write null)")


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)


def _line(error: BaseException) -> str:
    """What an exception says, as the part of a line."""
    return " ".join(str(error).split())[:200]
