"""Samples on disk: tokenised once, then memory-mapped by every rank and every later run.

One directory per (file content, columns, tokenizer, template), named by the hash of all of them, so that nothing
stale can be served. It is written aside and renamed: it exists or it does not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from rich.console import Console
from rich.progress import track

from sft.data.chat import encode_batch, template_fingerprint, tokenizer_fingerprint
from sft.data.source import Columns, Row, count_rows, fingerprint_file, read_rows, to_conversation
from sft.errors import InputError
from sft.types import Sample

FORMAT = 2
"""Raise when the meaning of the cached bytes changes."""

ROWS_AT_ONCE = 1024
MAX_BAD_ROWS_SHOWN = 10

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_weights", pa.list_(pa.float32())),
        ("first_supervised", pa.int32()),  # position of the first trained token
        ("last_supervised", pa.int32()),
        ("row", pa.int64()),  # the number that messages about its row give it: `file:row`
    ]
)


@dataclass(frozen=True)
class CachedFile:
    """One data file, tokenised: where the samples lie, and what identifies them."""

    source: Path
    directory: Path
    key: str
    rows: int


def cached(
    source: Path,
    *,
    tokenizer: Any,
    columns: Columns,
    template_options: Mapping[str, Any],
    max_rows: int | None,
    cache_dir: Path,
    build_here: bool,
    say: Callable[[str], None],
) -> CachedFile:
    """The cached samples of `source`, tokenising it first if need be.

    One process per node builds (build_here); the others wait for the directory to appear. No collective is
    held meanwhile, so tokenising may take longer than any timeout; if the builder dies, torchrun ends the rest.
    Raises InputError listing the bad rows.
    """
    ingredients = [
        FORMAT,
        fingerprint_file(source),
        source.suffix,
        columns.fingerprint(),
        tokenizer_fingerprint(tokenizer),
        template_fingerprint(tokenizer, template_options),
        max_rows,
    ]
    key = hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:32]
    directory = cache_dir / key
    if build_here and not directory.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{key}.lock"):
            if not directory.exists():  # another run may have built it while we waited
                _build(source, directory, tokenizer, columns, template_options, max_rows, say)
    while not directory.exists():
        time.sleep(0.05)
    facts = json.loads((directory / "facts.json").read_text())
    return CachedFile(source, directory, key, facts["rows"])


def _build(
    source: Path,
    directory: Path,
    tokenizer: Any,
    columns: Columns,
    template_options: Mapping[str, Any],
    max_rows: int | None,
    say: Callable[[str], None],
) -> None:
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # a build that was killed; the lock says that it is not alive
    aside.mkdir()
    started = time.monotonic()
    num_rows = num_samples = num_tokens = 0
    try:
        with pa.OSFile(str(aside / "samples.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for rows in _with_progress(source, max_rows):
                batch = _tokenise(rows, tokenizer, columns, template_options)
                writer.write_batch(batch)
                num_rows += len(rows)
                num_samples += len(batch)
                num_tokens += len(batch["input_ids"].flatten())
        facts = {"source": str(source), "rows": num_rows, "samples": num_samples, "tokens": num_tokens}
        (aside / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
        aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    seconds = time.monotonic() - started
    say(f"tokenised {source}: {num_rows:,} rows -> {num_samples:,} samples, {num_tokens:,} tokens in {seconds:.1f} s")


def _with_progress(source: Path, max_rows: int | None) -> Iterator[list]:
    """The rows of the file in lists of ROWS_AT_ONCE; a progress bar where a person is watching."""
    rows: Iterable = itertools.islice(read_rows(source), max_rows)
    total = count_rows(source) if max_rows is None else min(count_rows(source), max_rows)
    console = Console(stderr=True)
    watched = iter(
        track(
            rows, f"tokenising {source.name}", total, console=console, transient=True, disable=not console.is_terminal
        )
    )
    return iter(lambda: list(itertools.islice(watched, ROWS_AT_ONCE)), [])


def _tokenise(
    rows: Sequence[Row], tokenizer: Any, columns: Columns, template_options: Mapping[str, Any]
) -> pa.RecordBatch:
    """One Arrow batch of samples. Raises InputError that names every bad row of the batch."""
    try:
        conversations = [to_conversation(row, columns, template_options) for row in rows]
        encoded = encode_batch(conversations, tokenizer)
    except InputError:
        raise _all_problems(rows, tokenizer, columns, template_options) from None
    samples = [sample for of_one_row in encoded for sample in of_one_row]
    numbers = [int(where.rpartition(":")[2]) for where, _ in rows]
    row_of_sample = [number for number, of_one_row in zip(numbers, encoded, strict=True) for _ in of_one_row]
    supervised = [np.flatnonzero(sample.loss_weights) for sample in samples]
    columns_of_batch = [
        _list_array([sample.input_ids for sample in samples], np.int32),
        _list_array([sample.loss_weights for sample in samples], np.float32),
        pa.array([positions[0] for positions in supervised], pa.int32()),
        pa.array([positions[-1] for positions in supervised], pa.int32()),
        pa.array(row_of_sample, pa.int64()),
    ]
    return pa.record_batch(columns_of_batch, schema=SCHEMA)


def _all_problems(
    rows: Sequence[Row], tokenizer: Any, columns: Columns, template_options: Mapping[str, Any]
) -> InputError:
    """Every row tried by itself: fixing a file one message at a time is no fun."""
    problems = []
    for row in rows:
        try:
            encode_batch([to_conversation(row, columns, template_options)], tokenizer)
        except InputError as error:
            problems.append(str(error))
    shown = "\n  ".join(dict.fromkeys(problems[:MAX_BAD_ROWS_SHOWN]))
    more = f"\n  and {len(problems) - MAX_BAD_ROWS_SHOWN} more" if len(problems) > MAX_BAD_ROWS_SHOWN else ""
    return InputError(f"{len(problems)} of {len(rows)} rows cannot be used:\n  {shown}{more}")


def _list_array(arrays: Sequence[np.ndarray], dtype: type) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(dtype, copy=False)))


class SampleStore:
    """Samples of several cached files behind one index, read from the page cache without a copy.

    lengths, first_supervised, last_supervised: int32 [number of samples]
    """

    def __init__(self, files: Sequence[CachedFile]):
        self._batches: list[pa.RecordBatch] = []
        self._file_of_batch: list[CachedFile] = []
        for file in files:
            for batch in _open(file):
                if len(batch):
                    self._batches.append(batch)
                    self._file_of_batch.append(file)
        self._starts = np.cumsum([0, *map(len, self._batches)])
        self._ids = [_ragged(batch["input_ids"]) for batch in self._batches]
        self._weights = [_ragged(batch["loss_weights"])[1] for batch in self._batches]
        self.lengths = _joined([np.diff(offsets) for offsets, _ in self._ids])
        self.first_supervised = _joined([batch["first_supervised"].to_numpy() for batch in self._batches])
        self.last_supervised = _joined([batch["last_supervised"].to_numpy() for batch in self._batches])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        batch, offset = self._find(index)
        offsets, ids = self._ids[batch]
        span = slice(offsets[offset], offsets[offset + 1])
        return Sample(ids[span], self._weights[batch][span])

    def where(self, index: int) -> str:
        """ "file:row" of the sample, counted as in every other message about its row."""
        batch, offset = self._find(index)
        return f"{self._file_of_batch[batch].source.name}:{self._batches[batch]['row'][offset]}"

    def _find(self, index: int) -> tuple[int, int]:
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return batch, int(index - self._starts[batch])


def _open(file: CachedFile) -> list[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file.directory / "samples.arrow")))
        return [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"the token cache {file.directory} is damaged ({error}); delete it and start again."
        ) from error


def _ragged(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets [n + 1], values) of a list column, both zero-copy."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, np.int32)
