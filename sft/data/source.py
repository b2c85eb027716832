"""Files -> rows -> Conversations.

A row is a dict of columns, known by its `where` ("train.jsonl:12", line counted from 1; "train.parquet:0", row
counted from 0) in every message about it.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sft.data.chat import Conversation
from sft.errors import InputError

Row = tuple[str, dict[str, Any]]


class RowError(InputError):
    """One row cannot be used; the message names file:row, what was found and what was expected."""


@dataclass(frozen=True)
class Columns:
    """Where a row keeps its conversation: a prompt and a response column, or one column of messages."""

    prompt_key: str
    response_key: str
    prompt_dict_keys: tuple[str, ...]
    response_dict_keys: tuple[str, ...]
    multiturn: bool
    messages_key: str
    tools_key: str
    enable_thinking_key: str

    def fingerprint(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def expand_files(specs: Iterable[str], suffixes: tuple[str, ...] = (".parquet", ".jsonl")) -> list[Path]:
    """The files that paths, globs and directories stand for; each spec's in sorted order, specs in their own."""
    files: list[Path] = []
    for spec in specs:
        if Path(spec).is_dir():
            files += sorted(path for path in Path(spec).rglob("*") if path.suffix in suffixes)
        elif Path(spec).exists():
            files.append(Path(spec))
        else:
            files += sorted(Path(match) for match in glob.glob(spec, recursive=True))  # noqa: PTH207 - may be absolute
    if not files:
        raise InputError(f"no data files at {', '.join(specs)}.")
    return files


def fingerprint_file(path: Path) -> str:
    """sha256 of the content, so that a changed row is never served from an old cache."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def count_rows(path: Path) -> int:
    """Rows of the file, cheaply (blank lines included): the length of the progress bar."""
    if path.suffix == ".parquet":
        return _open_parquet(path).metadata.num_rows
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of a parquet or JSONL file in file order, a batch at a time in memory.

    Raises InputError for a file, RowError for a line that is not what its name says.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise InputError(f"{path} is empty: expected parquet, or JSONL with one object per line.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a git-lfs pointer, not the data; run `git lfs pull` where you cloned it.")
    return _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)


def _open_parquet(path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file ({error}); write it again.") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    index = 0
    for batch in _open_parquet(path).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            yield f"{path.name}:{index}", row
            index += 1


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path.name}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise RowError(f"{where}: byte {error.start} is not UTF-8; convert the file to UTF-8.") from error
            if not line:
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                near = line[max(0, error.pos - 40) : error.pos + 40]
                raise RowError(
                    f"{where}: not JSON ({error.msg} at column {error.colno}: {near!r}); expected one object per line."
                ) from error
            if not isinstance(row, dict):
                raise RowError(
                    f"{where}: found a JSON {type(row).__name__} ({line[:80]!r}), expected an object with columns; "
                    "write one object per line."
                )
            yield where, row


def to_conversation(row: Row, columns: Columns, template_options: Mapping[str, Any]) -> Conversation:
    """The messages (and tools) of one row. Single-turn columns win over `messages` unless `multiturn` insists."""
    where, cells = row
    single_turn = not columns.multiturn and columns.prompt_key in cells
    if single_turn:
        messages = _single_turn(cells, where, columns)
    elif columns.messages_key in cells:
        messages = _from_json(cells[columns.messages_key])
    else:
        looked_for = [columns.messages_key] if columns.multiturn else [columns.prompt_key, columns.messages_key]
        knobs = "data.multiturn.messages_key" if columns.multiturn else "data.prompt_key or data.multiturn.messages_key"
        raise RowError(f"{where}: no column {' or '.join(map(repr, looked_for))}; found {sorted(cells)}. Set {knobs}.")
    if not isinstance(messages, list) or not messages:
        raise RowError(
            f"{where}: column {columns.messages_key!r} holds {_short(messages)}, expected a list of messages."
        )
    options = dict(template_options)
    if cells.get(columns.enable_thinking_key) is not None:
        options["enable_thinking"] = bool(cells[columns.enable_thinking_key])
    return Conversation(messages=messages, tools=cells.get(columns.tools_key), template_options=options, where=where)


def _single_turn(cells: dict[str, Any], where: str, columns: Columns) -> list[dict[str, Any]]:
    prompt = _cell(cells, where, "data.prompt_key", columns.prompt_key, columns.prompt_dict_keys)
    response = _cell(cells, where, "data.response_key", columns.response_key, columns.response_dict_keys)
    if not isinstance(response, str):
        raise RowError(f"{where}: data.response_key={columns.response_key} leads to {_short(response)}, expected text.")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list):
        raise RowError(
            f"{where}: data.prompt_key={columns.prompt_key} leads to {_short(prompt)}, "
            "expected text or a list of messages; nested columns are reached by data.prompt_dict_keys."
        )
    return [*prompt, {"role": "assistant", "content": response}]


def _cell(cells: dict[str, Any], where: str, knob: str, key: str, dict_keys: tuple[str, ...]) -> Any:
    """The value of a column; where it is a struct (or a JSON object as text), the value the dict keys lead to."""
    if key not in cells:
        raise RowError(f"{where}: no column {key!r}; found {sorted(cells)}. Set {knob}.")
    value = cells[key]
    for dict_key in dict_keys:
        struct = _from_json(value)
        if not isinstance(struct, dict):
            break
        if dict_key not in struct:
            if isinstance(value, str):
                break  # text that happens to be a JSON object
            raise RowError(f"{where}: {knob}={key} is a struct without {dict_key!r}; it has {sorted(struct)}.")
        value = struct[dict_key]
    return value


def _from_json(value: Any) -> Any:
    """The object or list that a text cell holds, or the cell itself."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:80]}{'…' if len(text) > 80 else ''}"
