"""What an epoch holds, and in which order: a pure function of (sources, seed, epoch).

    samples of each source   n x weight, or what its fraction of the epoch comes to
    which of them            the next ones of an endless sequence of passes, each pass a permutation of the source
    in which order           shuffled, or the easy ones first; sources with a fraction are spread evenly between

Neither world size nor batch size is asked, and no state is kept: epoch 7 can be worked out without epochs 0 to 6.
Plain files are a mixture without weights and fractions, which is one permutation of all samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from sft.data.shuffle import OF_PASSES, permutation
from sft.errors import InputError


@dataclass(frozen=True)
class Source:
    """Samples under one name; their ids follow those of the source before.

    weight:   how often an epoch sees each of them; 0.5: one half in this epoch, the other in the next
    fraction: of the samples of an epoch, and of every step; takes the place of the weight
    """

    name: str
    samples: int
    weight: float = 1.0
    fraction: float | None = None


@dataclass(frozen=True, eq=False)  # known by its identity, so that orders can be remembered
class Mixture:
    """The sources of a data set, and the difficulty by which its first epochs are sorted (float [samples])."""

    sources: tuple[Source, ...]
    difficulty: np.ndarray | None = None
    curriculum_epochs: int = 0

    def __len__(self) -> int:
        """Return the samples per epoch, repeated ones counted as often as they are seen."""
        return sum(self.counts)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many samples of each source an epoch holds: the same number in every epoch.

        An epoch sees the sources without a fraction as often as their weights say. Where every source has a
        fraction, it has as many samples as the sources hold together.
        """
        return tuple(round(share) for share in self.shares)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """The counts before they are rounded."""
        weighted = [source.samples * source.weight for source in self.sources]
        of_weights = [share for source, share in zip(self.sources, weighted, strict=True) if source.fraction is None]
        fractions = math.fsum(source.fraction or 0.0 for source in self.sources)
        samples = sum(source.samples for source in self.sources)
        total = sum(map(round, of_weights)) / (1 - fractions) if of_weights else samples
        return tuple(
            share if source.fraction is None else total * source.fraction
            for source, share in zip(self.sources, weighted, strict=True)
        )

    @cached_property
    def starts(self) -> np.ndarray:
        """The first id of each source, and behind them the number of all samples, int64 [sources + 1]."""
        return np.cumsum([0, *(source.samples for source in self.sources)])

    @cached_property
    def streams(self) -> list[list[int]]:
        """Which sources are shuffled with each other: those without a fraction; each of the others keeps to itself."""
        together = [index for index, source in enumerate(self.sources) if source.fraction is None]
        alone = [[index] for index, source in enumerate(self.sources) if source.fraction is not None]
        return [together, *alone] if together else alone

    @property
    def ids(self) -> dict[str, np.ndarray]:
        """All sample ids of each source."""
        ends = self.starts[1:]
        return {
            source.name: np.arange(end - source.samples, end) for source, end in zip(self.sources, ends, strict=True)
        }

    def source_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """Return the number of the source that each of these samples comes from."""
        return np.searchsorted(self.starts, sample_ids, side="right") - 1

    def count(self, sample_ids: np.ndarray) -> dict[str, int]:
        """How many of these samples come from each source."""
        counts = np.bincount(self.source_of(sample_ids), minlength=len(self.sources)).tolist()
        return {source.name: count for source, count in zip(self.sources, counts, strict=True)}


@lru_cache(maxsize=2)
def epoch_order(mixture: Mixture, seed: int, epoch: int) -> np.ndarray:
    """Return the sample ids of an epoch (0 = the first) in their order, int64 [len(mixture)].

    However the epoch is cut into steps, a source's share of a step's samples is its share of the epoch, up to one
    sample (with s streams and a fraction f: up to 1 + f * (s - 2)).
    """
    orders = []
    for number, members in enumerate(mixture.streams):
        ids = np.sort(np.concatenate([_samples_in_epoch(mixture, index, seed, epoch) for index in members]))
        order = ids[permutation(len(ids), seed, epoch, which=number)]
        if mixture.difficulty is not None and epoch < mixture.curriculum_epochs:
            order = order[np.argsort(mixture.difficulty[order], kind="stable")]  # equals stay shuffled
        orders.append(order)
    return spread_evenly(orders)


def _samples_in_epoch(mixture: Mixture, index: int, seed: int, epoch: int) -> np.ndarray:
    """Return the sample ids of one source that an epoch sees: the epoch's cut of the endless sequence of passes."""
    samples, count = mixture.sources[index].samples, mixture.counts[index]
    first, end = epoch * count, (epoch + 1) * count
    parts = []
    for turn in range(first // samples, math.ceil(end / samples)):
        begin, stop = max(first - turn * samples, 0), min(end - turn * samples, samples)
        whole = stop - begin == samples  # then their order within the pass is not asked for
        one_pass = np.arange(samples) if whole else permutation(samples, seed, turn, OF_PASSES, index)
        parts.append(one_pass[begin:stop])
    return mixture.starts[index] + np.concatenate(parts)


def spread_evenly(orders: Sequence[np.ndarray]) -> np.ndarray:
    """One order of several, each of them at an even pace from the first place to the last."""
    if len(orders) == 1:
        return orders[0]
    due = np.concatenate([(np.arange(len(order)) + 0.5) / len(order) for order in orders])
    return np.concatenate(orders)[np.argsort(due, kind="stable")]


def describe(mixture: Mixture, lengths: np.ndarray) -> str:
    """Return what an epoch holds, a line for each source. `lengths`: tokens of every sample."""
    # Of an epoch, each source's samples at their mean length.
    tokens = [int(lengths[ids].mean() * count) for ids, count in zip(mixture.ids.values(), mixture.counts, strict=True)]
    table = [
        (
            source.name,
            f"{count:,} samples",
            f"{count / len(mixture):.1%}",
            f"{of_source:,} tokens",
            f"{of_source / sum(tokens):.1%}",
            f"{count / source.samples:.2f} passes over its {source.samples:,}",
        )
        for source, count, of_source in zip(mixture.sources, mixture.counts, tokens, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n  ".join([f"an epoch is {len(mixture):,} samples, about {sum(tokens):,} tokens:", *lines])


def refuse_empty(sources: Sequence[Source]) -> None:
    """Raise InputError for sources of which nothing is left, or an epoch would hold less than one sample.

    Their weight or fraction could not be kept.
    """
    if empty := [source.name for source in sources if not source.samples]:
        raise InputError(
            f"data.mixture: no sample is left of {', '.join(empty)}; check its rows, data.truncation and "
            "data.max_length, or take it out."
        )
    mixture = Mixture(tuple(sources))
    small = [
        f"{source.name} (weight={source.weight:g} of {source.samples:,} samples comes to {share:.2g})"
        if source.fraction is None
        else f"{source.name} (fraction={source.fraction:g} comes to {share:.2g})"
        for source, share, count in zip(sources, mixture.shares, mixture.counts, strict=True)
        if not count
    ]
    if small:
        raise InputError(
            f"data.mixture: an epoch of {len(mixture):,} samples would hold less than one of {' and '.join(small)}; "
            "give it a larger share, or take it out."
        )
