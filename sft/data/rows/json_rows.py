"""Rows of JSON files, of which the first line says how they are written: an object per line, one array of objects, or
objects that span lines.

    an object per line     file:1 is the first line
    an array, or objects   file:0 is the first object
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sft.data.rows.unpacked import decoded, lines_of, one_line, opened
from sft.data.types import Row, RowError
from sft.errors import InputError

AROUND = '({"messages": [...]} around a list of messages)'

Layout = Literal["lines", "array", "objects"]


def layout_of(path: Path) -> Layout:
    """Return how a file of JSON is written: its first line is a whole object, begins an array, or begins an object."""
    try:
        with opened(path) as file:
            first = next((line for raw in file if (line := raw.removeprefix(b"\xef\xbb\xbf").strip())), b"")
    except OSError as error:
        raise InputError(
            f"{path} cannot be unpacked or read ({one_line(error)}); download or write it again."
        ) from error
    if first.startswith(b"["):
        return "array"
    return "objects" if _ends_inside(first.decode(errors="replace")) else "lines"


def _ends_inside(line: str) -> bool:
    """Return True if a line begins an object and ends before the object does."""
    if not line.startswith("{"):
        return False
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line)
    except (ValueError, RecursionError):
        return False
    return False


def read_json(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a JSON file, however it is written."""
    match layout_of(path):
        case "lines":
            return _of_lines(path, name)
        case "array":
            return _of_array(path, name)
        case "objects":
            return _of_objects(path, name)


def _of_lines(path: Path, name: str) -> Iterator[Row]:
    for number, raw in enumerate(lines_of(path, name), start=1):
        where = f"{name}:{number}"
        if line := decoded(raw, where, number == 1).strip():
            yield where, _of_line(line, where)


def _of_array(path: Path, name: str) -> Iterator[Row]:
    with opened(path) as file:
        text = _Text(file, name)
        text.peek()
        text.at += 1  # behind "["
        character = text.peek()
        while character != "]":
            yield text.where, text.object_in("an array of JSON objects")
            text.index += 1
            if (character := text.peek()) == ",":
                text.at += 1
                if text.peek() == "]":
                    raise RowError(f"{text.where}: found ']' behind ',', expected an object; take the ',' out.")
            elif character != "]":
                raise text.error("',' or ']' behind the object before")
        text.at += 1
        if text.peek():
            raise text.error(f"the end of the file behind the array; write one array, or an object per line {AROUND}")


def _of_objects(path: Path, name: str) -> Iterator[Row]:
    with opened(path) as file:
        text = _Text(file, name)
        while text.peek():
            yield text.where, text.object_in("JSON objects, one behind the other")
            text.index += 1


class _Text:
    """The text of a file, a megabyte at a time; how far it is read (`at`), and which object comes next (`index`)."""

    def __init__(self, file: BinaryIO, name: str):
        self._chunks = io.TextIOWrapper(file, encoding="utf-8-sig")
        self._name, self._text = name, ""
        self.at = self.index = 0

    @property
    def where(self) -> str:
        return f"{self._name}:{self.index}"

    def peek(self) -> str:
        """Return the next character that is not blank, or "" at the end of the file; `at` is its place then."""
        while True:
            while self.at < len(self._text) and self._text[self.at].isspace():
                self.at += 1
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._read_more():
                return ""

    def object_in(self, expected: str) -> dict[str, Any]:
        """Return the object that begins at `at`, and go behind it. expected: of the file, for the message."""
        while True:
            try:
                row, end = _DECODER.raw_decode(self._text, self.at)
                break
            except json.JSONDecodeError as error:
                if not self._read_more():
                    near = self._text[self.at : self.at + 80]
                    raise RowError(f"{self.where}: not JSON ({error.msg}: {near!r}); expected {expected}.") from error
            except (ValueError, RecursionError) as error:
                raise RowError(f"{self.where}: {one_line(error)}; expected {expected}.") from error
        start, self.at = self.at, end
        return _checked(row, self._text[start:end], self.where)

    def error(self, expected: str) -> RowError:
        """Return the error that says what stands at `at` in place of what is expected."""
        found = repr(self._text[self.at : self.at + 20]) if self.peek() else "the end of the file"
        return RowError(f"{self.where}: found {found}, expected {expected}.")

    def _read_more(self) -> bool:
        try:
            chunk = self._chunks.read(1 << 20)
        except (UnicodeDecodeError, OSError) as error:
            raise RowError(
                f"{self.where}: cannot be read ({one_line(error)}); write the file again, in UTF-8."
            ) from error
        self._text, self.at = self._text[self.at :] + chunk, 0
        return bool(chunk)


def _of_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        near = line[max(0, error.pos - 40) : error.pos + 40]
        raise RowError(
            f"{where}: not JSON ({error.msg} at column {error.colno}: {near!r}); expected one object per line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where}: {one_line(error)}; expected one JSON object per line.") from error
    return _checked(row, line, where)


def _checked(row: Any, line: str, where: str) -> dict[str, Any]:
    """Return the row that `line` spells. Raises RowError where it is no object, or holds half of a character."""
    if not isinstance(row, dict):
        raise RowError(
            f"{where}: found a JSON {type(row).__name__} ({line[:80]!r}), expected an object with columns; "
            f"write one object per line {AROUND}."
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
