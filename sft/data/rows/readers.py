"""The kinds of files that hold rows, by suffix, and how each is read: a part at a time, every row with its place.

    parquet, Arrow, Feather    file:0 is the first row
    JSON                       see json_rows.py
    CSV, TSV, text             file:1 is the first line (of CSV and TSV the header)

What is compressed (.gz, .zst, .bz2) is unpacked while it is read.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from sft.data.chat.values import plain
from sft.data.rows.json_rows import layout_of, read_json
from sft.data.rows.unpacked import decoded, kind_of, lines_of, not_utf8, one_line, opened
from sft.data.types import Row, RowError
from sft.errors import InputError

Reader = Callable[[Path, str], Iterator[Row]]


def read_csv(path: Path, name: str, delimiter: str | None = None) -> Iterator[Row]:
    """Read CSV or TSV with a header; every cell is text, an empty one null. The place of a row is its first line.

    delimiter: None: a comma; in a header without one what stands there of DELIMITERS, or what its line `sep=` says
    """
    csv.field_size_limit(1 << 30)  # a long document is a cell like any other
    with opened(path) as file:
        # Bytes that are no UTF-8 become lone surrogates, which are told with their row.
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            first = lines.readline()
        except OSError as error:
            raise RowError(f"{name}:1: cannot be unpacked or read ({one_line(error)}); write it again.") from error
        stated = _SEP.fullmatch(first)  # as spreadsheets write it
        mark = delimiter or (stated[1] if stated else _delimiter_of(first))
        reader = csv.reader(chain(["\n" if stated else first], lines), delimiter=mark, strict=True)
        header: list[str] | None = None
        start = 1
        while True:
            try:
                cells = next(reader, None)
            except (csv.Error, OSError) as error:
                raise RowError(
                    f"{name}:{start}: cannot be read as {kind_of(path)[1:]} ({one_line(error)}). Quote a cell that "
                    "holds the delimiter, a quote or a line end, and double the quotes in it; or write JSONL."
                ) from error
            if cells is None:
                return
            where, start = f"{name}:{start}", reader.line_num + 1
            if not any(cells):
                continue
            if escaped := _ESCAPED.search(text := mark.join(cells)):
                before = text[: escaped.start()].encode("utf-8", "surrogateescape")
                raise RowError(not_utf8(text.encode("utf-8", "surrogateescape"), len(before), where))
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


DELIMITERS = ",;\t|"
_SEP = re.compile(r"sep=(.)\s*")
_ESCAPED = re.compile("[\udc80-\udcff]")


def _delimiter_of(header: str) -> str:
    """Return the first of DELIMITERS that stands in a header, outside of quotes; a comma where none does."""
    bare = re.sub(r'"[^"]*"', "", header)
    return next((delimiter for delimiter in DELIMITERS if delimiter in bare), ",")


def read_tsv(path: Path, name: str) -> Iterator[Row]:
    return read_csv(path, name, delimiter="\t")


def read_text(path: Path, name: str) -> Iterator[Row]:
    """Every line that is not blank is a text of its own, as `datasets` reads such files."""
    for number, raw in enumerate(lines_of(path, name), start=1):
        where = f"{name}:{number}"
        line = decoded(raw, where, number == 1).strip("\r\n")
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
    ".ndjson": read_json,
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
    if kind in (".csv", ".tsv") or (kind != ".txt" and layout_of(path) != "lines"):
        return sum(1 for _ in READERS[kind](path, path.name))
    return sum(not line.isspace() for line in lines_of(path, path.name))


def open_parquet(path: Path) -> Any:
    """Return the open parquet file. Raises InputError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is not a readable parquet file ({one_line(error)}); download or write it again."
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
        raise InputError(f"{path} is not a readable Arrow file ({one_line(error)}); write it again.") from error


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
                f"{name}:{index}: this row or one of the next 1,023 cannot be decoded ({one_line(error)}); "
                "download or write the file again."
            ) from error
        if rows is None:
            return
        for row in rows:
            # In Arrow every struct has the keys of all its siblings: null says that it has no such key.
            yield f"{name}:{index}", {column: plain(value, drop_nulls=True) for column, value in row.items()}
            index += 1
