"""Samples on disk: tokenised once, then memory-mapped by every rank and every later run.

One directory per (file content, format, columns, tokenizer, template), named by the hash of all of them, so that
nothing stale can be served. It is written aside and renamed: it exists or it does not.
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

from sft.data.chat import Conversation, encode_batch, template_fingerprint, tokenizer_fingerprint
from sft.data.documents import Document, encode_documents
from sft.data.rows import Item, RowSource
from sft.data.source import Row
from sft.errors import InputError
from sft.types import Sample

FORMAT = 3
"""Raise when the meaning of the cached bytes changes."""

ROWS_AT_ONCE = 1024
MAX_BAD_ROWS_SHOWN = 10
MAX_MESSAGE = 1000  # characters

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
class CachedRows:
    """The rows of one file (or class), tokenised: where the samples lie, and what identifies them."""

    name: str
    around_number: tuple[str, str]
    directory: Path
    key: str
    rows: int

    def where(self, number: int) -> str:
        """The row of that number, named as in every other message about it: "train.jsonl:12"."""
        before, after = self.around_number
        return f"{before}{number}{after}"


def cached(
    source: RowSource,
    *,
    tokenizer: Any,
    template_options: Mapping[str, Any],
    max_rows: int | None,
    bad_rows: str,
    cache_dir: Path,
    build_here: bool,
    say: Callable[[str], None],
) -> CachedRows:
    """The cached samples of `source`, tokenising it first if need be.

    bad_rows: "error" raises InputError listing the rows that cannot be used; "drop" leaves them out, and says so

    One process per node builds (build_here); the others wait for the directory to appear. No collective is
    held meanwhile, so tokenising may take longer than any timeout; if the builder dies, torchrun ends the rest.
    """
    ingredients = [
        FORMAT,
        *source.fingerprint(),
        tokenizer_fingerprint(tokenizer),
        template_fingerprint(tokenizer, template_options),
        max_rows,
        bad_rows,
    ]
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]
    directory = cache_dir / key
    if build_here and not directory.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{key}.lock"):
            if not directory.exists():  # another run may have built it while we waited
                _build(source, directory, tokenizer, max_rows, bad_rows, say)
    while not directory.exists():
        time.sleep(0.05)
    facts = json.loads((directory / "facts.json").read_text())
    if facts["untrained"]:
        say(f"{source.name}: {facts['untrained']:,} of {facts['rows']:,} rows hold nothing to train and are left out")
    if facts["bad"]:
        first = "\n  ".join(["first:", *facts["first_bad"]])
        say(f"{source.name}: data.bad_rows=drop leaves out {facts['bad']:,} of {facts['rows']:,} rows; {first}")
    return CachedRows(source.name, source.around_number, directory, key, facts["rows"])


def _build(
    source: RowSource, directory: Path, tokenizer: Any, max_rows: int | None, bad_rows: str, say: Callable[[str], None]
) -> None:
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # a build that was killed; the lock says that it is not alive
    aside.mkdir()
    started = time.monotonic()
    num_rows = num_samples = num_tokens = num_untrained = 0
    bad: list[str] = []
    try:
        with pa.OSFile(str(aside / "samples.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for rows in _with_progress(source, max_rows):
                usable, encoded, problems = _encode_rows(rows, source, tokenizer)
                if problems and bad_rows == "error":
                    raise InputError(_listed(problems, len(rows)))
                batch = _to_arrow(usable, encoded, source)
                writer.write_batch(batch)
                bad += problems
                num_rows += len(rows)
                num_untrained += encoded.count([])
                num_samples += len(batch)
                num_tokens += len(batch["input_ids"].flatten())
        facts = {
            "source": source.name,
            "rows": num_rows,
            "samples": num_samples,
            "tokens": num_tokens,
            "untrained": num_untrained,
            "bad": len(bad),
            "first_bad": bad[:MAX_BAD_ROWS_SHOWN],
        }
        (aside / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
        aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    made = f"{num_samples:,} samples, {num_tokens:,} tokens in {time.monotonic() - started:.1f} s"
    say(f"tokenised {source.name}: {num_rows:,} rows -> {made}")


def _with_progress(source: RowSource, max_rows: int | None) -> Iterator[list[Row]]:
    """The rows in lists of ROWS_AT_ONCE; a progress bar where a person is watching."""
    rows: Iterable = itertools.islice(source.read(), max_rows)
    total = source.count() if max_rows is None else min(source.count(), max_rows)
    console = Console(stderr=True)
    watched = iter(
        track(
            rows, f"tokenising {source.name}", total, console=console, transient=True, disable=not console.is_terminal
        )
    )
    return iter(lambda: list(itertools.islice(watched, ROWS_AT_ONCE)), [])


def _encode_rows(
    rows: Sequence[Row], source: RowSource, tokenizer: Any
) -> tuple[Sequence[Row], list[list[Sample]], list[str]]:
    """(the rows that can be used, the samples of each, what is wrong with each of the others)."""
    try:
        return rows, encode_items([source.convert(row) for row in rows], tokenizer, source.max_length), []
    except InputError:
        pass
    usable, encoded, problems = [], [], []
    for row in rows:  # each by itself: fixing a file one message at a time is no fun
        try:
            encoded += encode_items([source.convert(row)], tokenizer, source.max_length)
            usable.append(row)
        except InputError as error:
            problems.append(_bounded(str(error)))
    return usable, encoded, problems


def encode_items(items: Sequence[Item], tokenizer: Any, max_length: int) -> list[list[Sample]]:
    """The samples of every item."""
    conversations = [item for item in items if isinstance(item, Conversation)]
    documents = [item for item in items if isinstance(item, Document)]
    of_conversations = iter(encode_batch(conversations, tokenizer))
    of_documents = iter(encode_documents(documents, tokenizer, max_length) if documents else [])

    def samples_of(item: Item) -> list[Sample]:
        if isinstance(item, Sample):
            return [item]
        return next(of_conversations if isinstance(item, Conversation) else of_documents)

    return [samples_of(item) for item in items]


def _to_arrow(rows: Sequence[Row], encoded: Sequence[list[Sample]], source: RowSource) -> pa.RecordBatch:
    samples = [sample for of_one_row in encoded for sample in of_one_row]
    before, after = map(len, source.around_number)
    numbers = [int(where[before : len(where) - after]) for where, _ in rows]
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


def _listed(problems: Sequence[str], num_rows: int) -> str:
    shown = "\n  ".join(dict.fromkeys(problems[:MAX_BAD_ROWS_SHOWN]))
    more = f"\n  and {len(problems) - MAX_BAD_ROWS_SHOWN} more" if len(problems) > MAX_BAD_ROWS_SHOWN else ""
    return (
        f"{len(problems)} of {num_rows} rows cannot be used:\n  {shown}{more}\n"
        "Mend them, or set data.bad_rows=drop to leave such rows out."
    )


def _bounded(problem: str) -> str:
    """A message that quotes a row of megabytes keeps its beginning, which names the row, and its end, the way out."""
    if len(problem) <= MAX_MESSAGE:
        return problem
    return f"{problem[: MAX_MESSAGE - 300]} … {problem[-280:]}"


def _list_array(arrays: Sequence[np.ndarray], dtype: type) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(dtype, copy=False)))


class SampleStore:
    """Samples of several cached files behind one index, read from the page cache without a copy.

    lengths, first_supervised, last_supervised: int32 [number of samples]
    """

    def __init__(self, files: Sequence[CachedRows]):
        self._batches: list[pa.RecordBatch] = []
        self._file_of_batch: list[CachedRows] = []
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
        return self._file_of_batch[batch].where(self._batches[batch]["row"][offset].as_py())

    def _find(self, index: int) -> tuple[int, int]:
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return batch, int(index - self._starts[batch])


def _open(file: CachedRows) -> list[pa.RecordBatch]:
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
