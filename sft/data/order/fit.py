"""Making samples fit `max_length`: decided for the whole data set before training, counted, never silent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sft.data.cache.store import Block, SampleStore
from sft.errors import InputError
from sft.types import Sample

MAX_SHOWN = 5


class FittedSamples:
    """The samples of a store that train, each cut to its window; indexed 0 .. len-1.

    lengths: int32 [number of samples], after cutting
    file_starts: the first sample of each file, and behind them the number of all samples, int64 [files + 1]
    """

    def __init__(self, store: SampleStore, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray):
        self._store, self._ids, self._starts, self.lengths = store, ids, starts, lengths
        self.digests = store.digests[ids]  # uint64 [number of samples], of the samples before cutting
        self.file_starts = np.searchsorted(ids, store.file_starts)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Sample:
        whole = self._store[self._ids[index]]
        window = slice(self._starts[index], self._starts[index] + self.lengths[index])
        return Sample(whole.input_ids[window], whole.loss_weights[window])

    def fingerprint(self) -> str:
        """Return a hash of all tokens and weights in order: equal only if all samples are, however they were made."""
        parts = (self.digests, self._starts, self.lengths)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:32]

    def difficulty(self) -> np.ndarray:
        """Return what data.curriculum sorts by, float64 [number of samples]; for rows that were read with it."""
        return self._store.difficulty()[self._ids]

    def blocks(self) -> Iterator[Block]:
        """Yield all samples in order, in blocks of many samples. A block that is not cut is not copied."""
        for first, block in self._store.blocks():
            here = slice(*np.searchsorted(self._ids, [first, first + len(block.lengths)]))
            ids, starts, lengths = self._ids[here] - first, self._starts[here], self.lengths[here]
            if len(ids) == len(block.lengths) and (lengths == block.lengths).all():
                yield block
                continue
            begin_here = (np.cumsum(block.lengths) - block.lengths)[ids] + starts
            begin_there = np.cumsum(lengths) - lengths
            taken = np.arange(lengths.sum()) + np.repeat(begin_here - begin_there, lengths)
            yield Block(lengths, block.input_ids[taken], block.loss_weights[taken])

    def where(self, index: int) -> str:
        """Return "file:row" of a sample, for messages."""
        return self._store.where(self._ids[index])


@dataclass(frozen=True)
class FitReport:
    """What fitting did to a data set, as counts."""

    samples: int
    truncated: int
    dropped_too_long: int
    dropped_nothing_supervised: int  # truncation cut away everything that would be trained
    first_truncated: tuple[str, ...]  # file:row of the first of each kind
    first_too_long: tuple[str, ...]
    first_nothing_supervised: tuple[str, ...]

    def __str__(self) -> str:
        told = [f"{self.samples:,} samples"]
        told += [f"{self.truncated:,} truncated"] * bool(self.truncated)
        told += [f"{self.dropped_too_long:,} dropped as too long"] * bool(self.dropped_too_long)
        told += [f"{self.dropped_nothing_supervised:,} dropped because truncation left nothing to train"] * bool(
            self.dropped_nothing_supervised
        )
        return ", ".join(told)


def fit(
    store: SampleStore, *, max_length: int, truncation: str, wanted: np.ndarray | None = None
) -> tuple[FittedSamples, FitReport]:
    """Cut or drop what is longer than max_length tokens, by truncation = error | left | right | drop.

    wanted: bool [samples], the others are left out and not counted; None: all.
    left keeps the end of a sample, right its beginning. A sample whose window holds no trained token that can
    be predicted from inside it is dropped and counted. Raises InputError for `error`, naming the first rows.
    """
    lengths, ids = store.lengths, np.arange(len(store))
    wanted = np.ones(len(store), bool) if wanted is None else wanted
    too_long = wanted & (lengths > max_length)
    if truncation == "error" and too_long.any():
        worst = ids[too_long]
        first = ", ".join(f"{store.where(i)} ({lengths[i]:,} tokens)" for i in worst[:MAX_SHOWN])
        raise InputError(
            f"data.truncation=error: {len(worst):,} of {len(store):,} samples are longer than "
            f"data.max_length={max_length} (longest {lengths.max():,}); first: {first}. "
            "Raise data.max_length, or set data.truncation=left|right|drop."
        )
    dropped = too_long & (truncation == "drop")
    cut = too_long & ~dropped
    fitted_lengths = np.where(cut, max_length, lengths)
    starts = np.where(cut, lengths - max_length, 0) if truncation == "left" else np.zeros_like(lengths)
    # Behind the window's start: its first token is no target (Sample.targets).
    learns = wanted & (store.last_supervised > starts) & (store.first_supervised < starts + fitted_lengths)
    emptied = cut & ~learns
    kept = learns & ~dropped

    def first_of(which: np.ndarray) -> tuple[str, ...]:
        return tuple(store.where(i) for i in ids[which][:MAX_SHOWN])

    truncated = kept & cut
    report = FitReport(
        samples=int(kept.sum()),
        truncated=int(truncated.sum()),
        dropped_too_long=int(dropped.sum()),
        dropped_nothing_supervised=int(emptied.sum()),
        first_truncated=first_of(truncated),
        first_too_long=first_of(dropped),
        first_nothing_supervised=first_of(emptied),
    )
    return FittedSamples(store, ids[kept], starts[kept], fitted_lengths[kept]), report
