"""Files of text as bytes and lines: unpacked, decoded, and with the place of what cannot be read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sft.data.types import RowError

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


def kind_of(path: Path) -> str:
    """Return the suffix that says how a file is read, in small letters: "a.JSONL.gz" is ".jsonl"."""
    return (Path(path.stem).suffix if is_compressed(path) else path.suffix).lower()


def is_compressed(path: Path) -> bool:
    """Return True if the name says that the file is unpacked while it is read."""
    return path.suffix.lower() in COMPRESSED


def opened(path: Path) -> BinaryIO:
    """Open a file for reading bytes, unpacked."""
    import pyarrow as pa

    if not is_compressed(path):
        return path.open("rb")
    return io.BufferedReader(pa.input_stream(str(path), compression=COMPRESSED[path.suffix.lower()]))  # type: ignore[arg-type]


def lines_of(path: Path, name: str) -> Iterator[bytes]:
    """Yield the lines of a file. Raises RowError, with the line, where it cannot be unpacked or read."""
    number = 0
    try:
        with opened(path) as file:
            for raw in file:
                number += 1
                yield raw
    except OSError as error:
        raise RowError(
            f"{name}:{number + 1}: cannot be unpacked or read ({one_line(error)}); download or write the file again."
        ) from error


def decoded(raw: bytes, where: str, is_first: bool) -> str:
    """Return the text of a line, without a byte order mark in the first. Raises RowError where it is not UTF-8."""
    try:
        return raw.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        raise RowError(not_utf8(raw, error.start, where)) from error


def not_utf8(raw: bytes, start: int, where: str) -> str:
    """Return what is said of bytes that are no UTF-8."""
    return (
        f"{where}: byte {start} is not UTF-8 ({raw[max(0, start - 20) : start + 20]!r}); "
        "convert the file to UTF-8 (iconv -f LATIN1 -t UTF-8, if it is Latin-1)."
    )


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line."""
    return " ".join(str(error).split())[:200]
