"""What is in a data set, in numbers: what was kept and dropped, what trains, and what looks like a mistake.

The numbers come from the token cache: nothing is tokenised or read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sft.data.cache.facts import CacheFacts
from sft.data.cache.store import Block
from sft.data.dataset import Dataset
from sft.data.order.fit import FittedSamples

MAX_SHOWN = 5
SMALL_SHARE = 0.1
"""A sample is odd whose trained share is below this part of the median sample's."""


@dataclass(frozen=True)
class Found:
    """How many there are of something, and the places ("file:row") of the first."""

    count: int = 0
    first: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.count:,}" + (f" ({', '.join(self.first)}{more})" if self.first else "")


@dataclass(frozen=True)
class Audit:
    """The numbers of one data set. S samples that train, of which the first `looked_at` were read token by token.

    lengths: int32 [S], tokens of each sample
    supervised_tokens: int32 [looked_at], trained tokens of each
    """

    rows: int
    dropped_rows: dict[str, Found]  # by cause, in rows, before there are samples
    dropped_samples: dict[str, Found]  # by cause, in samples
    truncated: Found
    typed_special_tokens: Found  # rows
    duplicates: Found  # samples that are equal to an earlier one: "b.jsonl:7 = a.jsonl:3"
    lengths: np.ndarray
    supervised_tokens: np.ndarray
    trained_turns: int  # runs of trained tokens
    without_stop: Found  # those of them that do not end with a stop token
    little_supervised: Found  # samples with an unusually small trained share

    @property
    def looked_at(self) -> int:
        return len(self.supervised_tokens)

    @property
    def supervised_frac(self) -> float:
        """Trained tokens per token."""
        return float(self.supervised_tokens.sum() / self.lengths[: self.looked_at].sum())


def audit(dataset: Dataset, stop_token_ids: Sequence[int], *, most_tokens: int | None = None) -> Audit:
    """Count what is in a data set. most_tokens: read no more tokens than about these; None reads all."""
    samples, fitting = dataset.samples, dataset.fitting
    counted = [_count_block(block, stop_token_ids) for block in _first_blocks(samples, most_tokens)]
    supervised, turns, stopped = (np.concatenate(parts) for parts in zip(*counted, strict=True))
    shares = supervised / samples.lengths[: len(supervised)]
    return Audit(
        rows=sum(source.rows for source in dataset.files),
        dropped_rows=_those_that_happened(
            {
                "cannot be used": _from_facts(dataset, lambda facts: (facts.counts.bad_rows, facts.first_bad)),
                "nothing to train": _from_facts(
                    dataset, lambda facts: (facts.counts.untrained_rows, facts.first_untrained)
                ),
            }
        ),
        dropped_samples=_those_that_happened(
            {
                "too long": Found(fitting.dropped_too_long, fitting.first_too_long),
                "nothing to train once truncated": Found(
                    fitting.dropped_nothing_supervised, fitting.first_nothing_supervised
                ),
            }
        ),
        truncated=Found(fitting.truncated, fitting.first_truncated),
        typed_special_tokens=_from_facts(
            dataset, lambda facts: (facts.counts.rows_with_typed_tokens, facts.first_typed)
        ),
        duplicates=_duplicates(samples),
        lengths=samples.lengths,
        supervised_tokens=supervised,
        trained_turns=int(turns.sum()),
        without_stop=_places(samples, turns > stopped, count=int((turns - stopped).sum())),
        little_supervised=_places(samples, shares < SMALL_SHARE * np.median(shares)),
    )


def overlap(val: Dataset, train: Dataset) -> Found:
    """Find samples of `val` that are in `train` too: "val.jsonl:3 = train.jsonl:17"."""
    digests, first_index = np.unique(train.samples.digests, return_index=True)
    nearest = np.minimum(np.searchsorted(digests, val.samples.digests), len(digests) - 1)
    in_both = np.flatnonzero(digests[nearest] == val.samples.digests)
    twins = first_index[nearest[in_both[:MAX_SHOWN]]].tolist()
    return Found(len(in_both), _pairs(val.samples, in_both, train.samples, twins))


def summary(numbers: Audit, name: str) -> list[str]:
    """Return the short version: what was kept, what trains, and, if there is any, what looks like a mistake."""
    return [f"{name}: {line}" for line in (kept(numbers), trained(numbers), "; ".join(oddities(numbers))) if line]


def kept(numbers: Audit) -> str:
    """Say what became of rows: "10 rows -> 7 samples; dropped: 3 samples (too long); 1 truncated"."""
    dropped = [
        f"{found.count:,} {kind} ({cause})"
        for kind, causes in (("rows", numbers.dropped_rows), ("samples", numbers.dropped_samples))
        for cause, found in causes.items()
    ]
    told = [f"{numbers.rows:,} rows -> {len(numbers.lengths):,} samples"]
    told += [f"dropped: {', '.join(dropped)}"] * bool(dropped)
    told += [f"{numbers.truncated.count:,} truncated"] * bool(numbers.truncated.count)
    return "; ".join(told)


def trained(numbers: Audit) -> str:
    """Say how much trains, and how many trained turns end with a stop token."""
    some = numbers.looked_at < len(numbers.lengths)
    within = f" (of the first {numbers.looked_at:,} samples)" if some else ""
    with_stop = numbers.trained_turns - numbers.without_stop.count
    return (
        f"{numbers.supervised_frac:.1%} of {numbers.lengths.sum():,} tokens are trained; "
        f"{with_stop:,} of {numbers.trained_turns:,} trained turns end with a stop token{within}"
    )


def oddities(numbers: Audit) -> Iterator[str]:
    """Yield what is allowed, but often a mistake."""
    if numbers.duplicates.count:
        yield f"samples equal to an earlier one: {numbers.duplicates}"
    if numbers.typed_special_tokens.count:
        yield f"rows that spell a special token outside the assistant's words: {numbers.typed_special_tokens}"
    if numbers.little_supervised.count:
        yield f"samples with an unusually small trained share: {numbers.little_supervised}"


def _first_blocks(samples: FittedSamples, most_tokens: int | None) -> Iterator[Block]:
    read = 0
    for block in samples.blocks():
        if most_tokens is not None and read >= most_tokens:
            return
        if len(block.lengths):
            yield block
        read += len(block.input_ids)


def _count_block(block: Block, stop_token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (supervised tokens, trained turns, those that end with a stop token) of every sample, int32 [S] each."""
    starts, supervised = block.starts, block.supervised
    ends = supervised & ~np.append(supervised[1:], False)  # no turn crosses into a sample, whose first token is none
    stopped = ends & np.isin(block.input_ids, stop_token_ids)

    def per_sample(marks: np.ndarray) -> np.ndarray:
        return np.add.reduceat(marks, starts, dtype=np.int32)

    return per_sample(supervised), per_sample(ends), per_sample(stopped)


def _duplicates(samples: FittedSamples) -> Found:
    _, first_index, group = np.unique(samples.digests, return_index=True, return_inverse=True)
    repeats = np.flatnonzero(first_index[group] != np.arange(len(samples)))
    return Found(len(repeats), _pairs(samples, repeats, samples, first_index[group[repeats[:MAX_SHOWN]]].tolist()))


def _pairs(samples: FittedSamples, which: np.ndarray, others: FittedSamples, twins: list[int]) -> tuple[str, ...]:
    """Yield "b.jsonl:7 = a.jsonl:3" for each of the twins."""
    return tuple(f"{samples.where(i)} = {others.where(twin)}" for i, twin in zip(which, twins, strict=False))


def _places(samples: FittedSamples, which: np.ndarray, count: int | None = None) -> Found:
    indices = np.flatnonzero(which)
    first = tuple(samples.where(i) for i in indices[:MAX_SHOWN])
    return Found(len(indices) if count is None else count, first)


def _from_facts(dataset: Dataset, look_up: Callable[[CacheFacts], tuple[int, list[str]]]) -> Found:
    """Add up one count of all files, and join the first places of each."""
    found = [look_up(file.facts) for file in dataset.files]
    places = [place for _, first in found for place in first]
    return Found(sum(count for count, _ in found), tuple(places[:MAX_SHOWN]))


def _those_that_happened(causes: dict[str, Found]) -> dict[str, Found]:
    return {cause: found for cause, found in causes.items() if found.count}
