"""Samples of several caches behind one index, read from the page cache without a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sft.data.cache.arrow import lists_to_numpy, to_numpy
from sft.data.cache.cache import SAMPLES_FILE, CachedRows
from sft.errors import InputError
from sft.files import is_of_the_machine
from sft.types import Sample


@dataclass(frozen=True)
class Block:
    """Some samples one after the other, for code that looks at many at once.

    lengths: int32 [S], input_ids: int32 [T], loss_weights: float32 [T], T = Σ lengths
    """

    lengths: np.ndarray
    input_ids: np.ndarray
    loss_weights: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Return where in input_ids each sample begins, int32 [S]."""
        return np.cumsum(self.lengths, dtype=np.int32) - self.lengths

    @property
    def supervised(self) -> np.ndarray:
        """Return which tokens are trained as targets, bool [T]; the first of a sample is never one (Sample.targets)."""
        supervised = self.loss_weights > 0
        supervised[self.starts] = False
        return supervised


class SampleStore:
    """Samples of several cached files behind one index, read from the page cache without a copy.

    lengths, first_supervised, last_supervised: int32 [number of samples]
    digests: uint64 [number of samples], equal for equal samples
    contents: uint64 [number of samples], equal where rows say the same
    file_starts: the first sample of each file, and behind them the number of all samples, int64 [files + 1]
    """

    def __init__(self, files: Sequence[CachedRows]):
        self._batches: list[pa.RecordBatch] = []
        samples_per_file: list[int] = []
        self._file_of_batch: list[CachedRows] = []
        for file in files:
            batches = _open(file)
            samples_per_file.append(sum(map(len, batches)))
            for batch in batches:
                if len(batch):
                    self._batches.append(batch)
                    self._file_of_batch.append(file)
        self.file_starts = np.cumsum([0, *samples_per_file])
        self._starts = np.cumsum([0, *map(len, self._batches)])
        self._ids = [lists_to_numpy(batch["input_ids"]) for batch in self._batches]
        self._weights = [lists_to_numpy(batch["loss_weights"])[1] for batch in self._batches]
        self.lengths = _joined([np.diff(offsets) for offsets, _ in self._ids])
        self.first_supervised = self._column("first_supervised")
        self.last_supervised = self._column("last_supervised")
        self.digests = self._column("digest")
        self.contents = self._column("content")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        batch, offset = self._find(index)
        offsets, ids = self._ids[batch]
        span = slice(offsets[offset], offsets[offset + 1])
        return Sample(ids[span], self._weights[batch][span])

    def difficulty(self) -> np.ndarray:
        """Return the difficulty of every sample, float64 [number of samples], where rows were read with one."""
        return self._column("difficulty")

    def row_starts(self) -> np.ndarray:
        """Return the first sample of every row, int64 [rows]; a row has several where the template rewrites turns."""
        rows = self._column("row")
        starts = np.ones(len(self), bool)
        starts[1:] = rows[1:] != rows[:-1]
        starts[self.file_starts[:-1][self.file_starts[:-1] < len(self)]] = True
        return np.flatnonzero(starts)

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Yield all samples in order, in blocks: (index of the first sample, block). Nothing is copied."""
        for start, (offsets, ids), weights in zip(self._starts, self._ids, self._weights, strict=False):
            span = slice(offsets[0], offsets[-1])
            yield int(start), Block(np.diff(offsets), ids[span], weights[span])

    def where(self, index: int) -> str:
        """Return "file:row" of a sample, counted as in every other message about its row."""
        batch, offset = self._find(index)
        return self._file_of_batch[batch].where(self._batches[batch]["row"][offset].as_py())

    def _column(self, name: str) -> np.ndarray:
        return _joined([to_numpy(batch[name]) for batch in self._batches])

    def _find(self, index: int) -> tuple[int, int]:
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return batch, int(index - self._starts[batch])


def _open(file: CachedRows) -> list[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file.directory / SAMPLES_FILE)))
        return [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        if is_of_the_machine(error):
            raise
        raise InputError(
            f"the token cache {file.directory} is damaged ({error}); delete it and start again."
        ) from error


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, np.int32)
