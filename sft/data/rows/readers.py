"""The kinds of files that hold rows, by suffix, and how each is read: a part at a time, every row with its place.

    parquet, Arrow, Feather    file:0 is the first row
    JSON array                 file:0 is the first object
    JSONL, CSV, TSV, text      file:1 is the first line (of CSV and TSV the header)

What is compressed (.gz, .zst, .bz2) is unpacked while it is read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sft.data.chat.values import plain
from sft.data.types import Row, RowError
from sft.errors import InputError

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}

Reader = Callable[[Path, str], Iterator[Row]]


def kind_of(path: Path) -> str:
    """Return the suffix that says how a file is read, that of compression left away: "a.jsonl.gz" is ".jsonl"."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def is_array(path: Path) -> bool:
    """Return True if a file of JSON begins with an array, as far as its first bytes show."""
    try:
        with opened(path) as file:
            return file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError as error:
        raise InputError(f"{path} cannot be unpacked or read ({_line(error)}); download or write it again.") from error


def opened(path: Path) -> BinaryIO:
    """Open a file for reading bytes, unpacked."""
    import pyarrow as pa

    if path.suffix not in COMPRESSED:
        return path.open("rb")
    return io.BufferedReader(pa.input_stream(str(path), compression=COMPRESSED[path.suffix]))  # type: ignore[arg-type]


def read_json(path: Path, name: str) -> Iterator[Row]:
    """JSONL or a JSON array: the first bytes say which."""
    return read_json_array(path, name) if is_array(path) else read_jsonl(path, name)


def read_jsonl(path: Path, name: str) -> Iterator[Row]:
    for number, raw in enumerate(_lines(path, name), start=1):
        where = f"{name}:{number}"
        if line := _decoded(raw, where, number == 1).strip():
            yield where, _parse_line(line, where)


def read_json_array(path: Path, name: str) -> Iterator[Row]:
    """Return the objects of one array, a megabyte of text at a time."""
    text, index, at = "", 0, 0
    with opened(path) as file:
        chunks = io.TextIOWrapper(file, encoding="utf-8-sig")

        def more() -> bool:
            nonlocal text, at
            try:
                chunk = chunks.read(1 << 20)
            except (UnicodeDecodeError, OSError) as error:
                raise RowError(
                    f"{name}:{index}: cannot be read ({_line(error)}); write the file again, in UTF-8."
                ) from error
            text, at = text[at:] + chunk, 0
            return bool(chunk)

        def skip(expected: str) -> str:
            nonlocal at
            while True:
                while at < len(text) and text[at].isspace():
                    at += 1
                if at < len(text):
                    break
                if not more():
                    raise RowError(f"{name}:{index}: the file ends here; expected {expected}. Write it again.")
            return text[at]

        skip("'['")
        at += 1
        while skip("an object or ']'") != "]":
            where = f"{name}:{index}"
            while True:
                try:
                    row, end = _DECODER.raw_decode(text, at)
                    break
                except json.JSONDecodeError as error:
                    if not more():
                        near = text[at : at + 80]
                        raise RowError(f"{where}: not JSON ({error.msg}: {near!r}); expected an array.") from error
                except (ValueError, RecursionError) as error:
                    raise RowError(f"{where}: {_line(error)}; expected an array of JSON objects.") from error
            yield where, _checked(row, text[at:end], where)
            at, index = end, index + 1
            if skip("',' or ']'") == ",":
                at += 1
            elif text[at] != "]":
                raise RowError(f"{where}: found {text[at : at + 20]!r} behind it, expected ',' or ']'.")


def read_csv(path: Path, name: str, delimiter: str = ",") -> Iterator[Row]:
    """CSV or TSV with a header; every cell is text, an empty one null. The place of a row is its first line."""
    csv.field_size_limit(1 << 30)  # a long document is a cell like any other
    with opened(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        start = 1
        while True:
            try:
                cells = next(reader, None)
            except (csv.Error, UnicodeDecodeError, OSError) as error:
                raise RowError(f"{name}:{start}: cannot be read as {path.suffix[1:]} ({_line(error)}).") from error
            if cells is None:
                return
            where, start = f"{name}:{start}", reader.line_num + 1
            if not any(cells):
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise InputError(f"{where}: a column name stands twice in the header {header}; rename one.")
                continue
            if len(cells) != len(header):
                raise RowError(
                    f"{where}: {len(cells)} cells, and the header has {len(header)} ({', '.join(header[:8])}); "
                    "expected as many. Quote a cell that holds the delimiter or a line end."
                )
            yield where, {column: cell or None for column, cell in zip(header, cells, strict=True)}


def read_tsv(path: Path, name: str) -> Iterator[Row]:
    return read_csv(path, name, delimiter="\t")


def read_text(path: Path, name: str) -> Iterator[Row]:
    """Every line that is not blank is a text of its own, as `datasets` reads such files."""
    for number, raw in enumerate(_lines(path, name), start=1):
        where = f"{name}:{number}"
        line = _decoded(raw, where, number == 1).strip("\r\n")
        if line and not line.isspace():
            yield where, {"text": line}


def read_parquet(path: Path, name: str) -> Iterator[Row]:
    return _rows_of(open_parquet(path).iter_batches(batch_size=1024), name)


def read_arrow(path: Path, name: str) -> Iterator[Row]:
    """Read an Arrow file or stream, or a Feather file."""
    return _rows_of(_arrow_batches(path), name)


READERS: dict[str, Reader] = {
    ".parquet": read_parquet,
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_text,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
"""The reader of each kind of file."""

BINARY = (".parquet", ".arrow", ".feather")


def count_rows(path: Path) -> int:
    """Return how many rows a file has, at most: of JSONL and parquet without reading what they hold."""
    kind = kind_of(path)
    if kind == ".parquet":
        return open_parquet(path).metadata.num_rows
    if kind in BINARY:
        return sum(batch.num_rows for batch in _arrow_batches(path))
    if kind in (".csv", ".tsv") or is_array(path):
        return sum(1 for _ in READERS[kind](path, path.name))
    return sum(not line.isspace() for line in _lines(path, path.name))


def open_parquet(path: Path) -> Any:
    """Return the open parquet file. Raises InputError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is not a readable parquet file ({_line(error)}); download or write it again."
        ) from error


def _arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.feather as feather

    try:
        source = pa.memory_map(str(path))
        head = source.read(6)
        source.seek(0)
        if head == b"ARROW1":
            reader = pa.ipc.open_file(source)
            batches: Iterable[Any] = map(reader.get_batch, range(reader.num_record_batches))
        elif head.startswith(b"FEA1"):
            batches = feather.read_table(path).to_batches()
        else:
            batches = pa.ipc.open_stream(source)
        for batch in batches:
            for start in range(0, batch.num_rows, 1024):
                yield batch.slice(start, 1024)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Arrow file ({_line(error)}); write it again.") from error


def _rows_of(batches: Iterator[Any], name: str) -> Iterator[Row]:
    """Return the rows of Arrow batches."""
    import pyarrow as pa

    index = 0
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


def _lines(path: Path, name: str) -> Iterator[bytes]:
    number = 0
    try:
        with opened(path) as file:
            for raw in file:
                number += 1
                yield raw
    except OSError as error:
        raise RowError(
            f"{name}:{number + 1}: cannot be unpacked or read ({_line(error)}); download or write the file again."
        ) from error


def _decoded(raw: bytes, where: str, is_first: bool) -> str:
    try:
        return raw.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        raise RowError(
            f"{where}: byte {error.start} is not UTF-8 ({raw[max(0, error.start - 20) : error.start + 20]!r}); "
            "convert the file to UTF-8 (iconv -f LATIN1 -t UTF-8, if it is Latin-1)."
        ) from error


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
    return _checked(row, line, where)


def _checked(row: Any, line: str, where: str) -> dict[str, Any]:
    """Return the row that `line` spells. Raises RowError where it is no object, or holds half of a character."""
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
    """Return what an exception says, on one line."""
    return " ".join(str(error).split())[:200]
