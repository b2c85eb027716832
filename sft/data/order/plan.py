"""Which samples a step trains, and which rank computes which of them: pure functions, no communication.

    Plan           what each step trains
    micro_batches  who computes what: every rank the same number of forwards, for each of them waits for all ranks

The order of the samples is a function of (seed, epoch, mixture) alone. World size and micro-batch size only decide
who computes what. So the state of the data is one integer, the step.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sft.data.order.mixture import Mixture, epoch_order
from sft.data.shuffle import OF_STEPS, permutation


def steps_per_epoch(samples_per_epoch: int, batch_size: int) -> int:
    """Optimizer steps in one pass over the data; the last one may be smaller, none is dropped."""
    return math.ceil(samples_per_epoch / batch_size)


def position(step: int, samples_per_epoch: int, batch_size: int) -> tuple[int, int]:
    """Return (epoch, index of the step within that epoch), both from 0, of a step counted from 1."""
    return divmod(step - 1, steps_per_epoch(samples_per_epoch, batch_size))


@dataclass(frozen=True)
class Plan:
    """What a run trains, step by step: a pure function of these four, so the same on every rank and after a resume."""

    mixture: Mixture
    batch_size: int  # samples of a step
    seed: int
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.mixture), self.batch_size)

    def samples(self, step: int) -> np.ndarray:
        """Return the sample ids of optimizer step `step` (1 = the first), int64 [<= batch_size]."""
        epoch, index = position(step, len(self.mixture), self.batch_size)
        ids = self.order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        if len(self.mixture.streams) == 1:
            return ids
        # Sources at an even pace, dealt to ranks in turn, could give every other rank another source.
        return ids[permutation(len(ids), self.seed, step, OF_STEPS)]

    def order(self, epoch: int) -> np.ndarray:
        """Return the ids of all samples of an epoch (0 = the first), in the order in which they are trained."""
        return epoch_order(self.mixture, self.seed, epoch)


def micro_batches(
    sample_ids: np.ndarray,
    lengths: np.ndarray,
    *,
    dp_size: int,
    dp_rank: int,
    micro_batch_size: int,
    max_tokens: int | None = None,
    balanced: bool = False,
    packed: bool = True,
) -> list[np.ndarray]:
    """Return the sample ids of each micro-batch that one data-parallel rank computes for a step.

    lengths:    tokens of each of sample_ids
    max_tokens: most tokens of a micro-batch, with its padding where not packed; replaces micro_batch_size
    balanced:   deal the samples by length, not in their order; micro_batch_size stays

    Every rank gets the same number of them, because every forward is a collective under FSDP; where the
    samples do not go around, the last ones are smaller or empty.
    """
    if max_tokens is not None:
        bins = fill_bins(lengths, max_tokens, packed=packed, multiple_of=dp_size)
        costs = [
            int(lengths[members].sum() if packed else lengths[members].max(initial=0) * len(members))
            for members in bins
        ]
        return [sample_ids[bins[index]] for index in deal(costs, dp_size)[dp_rank]]
    mine = sample_ids[deal(lengths.tolist(), dp_size)[dp_rank]] if balanced else sample_ids[dp_rank::dp_size]
    most_samples = math.ceil(len(sample_ids) / dp_size)
    return [mine[start : start + micro_batch_size] for start in range(0, most_samples, micro_batch_size)]


def deal(costs: Sequence[int], ranks: int) -> list[np.ndarray]:
    """Share out things of these costs: for each rank the indices of its own, dearest first.

    They are dealt in rounds, the dearest first and one to each rank; in a round the rank that has least so far
    takes the dearest. So the k-th things of all ranks cost about the same, and no two ranks' totals ever differ
    by more than the dearest thing.
    """
    hands: list[list[int]] = [[] for _ in range(ranks)]
    totals = [0] * ranks
    dearest_first = sorted(range(len(costs)), key=lambda index: -costs[index])
    for start in range(0, len(costs), ranks):
        poorest_first = sorted(range(ranks), key=totals.__getitem__)
        for rank, index in zip(poorest_first, dearest_first[start : start + ranks], strict=False):
            hands[rank].append(index)
            totals[rank] += costs[index]
    return [np.array(hand, np.int64) for hand in hands]


def fill_bins(lengths: np.ndarray, max_tokens: int, *, packed: bool, multiple_of: int) -> list[np.ndarray]:
    """Put samples into as few bins of at most max_tokens as we find; their number is a multiple of `multiple_of`.

    Returns the sample indices of every bin; some may be empty. Then the bins are levelled: the lowest limit that
    needs no more bins takes the place of max_tokens, or the last bins would be nearly empty beside full ones.

    Source: MULTIFIT, Coffman, Garey and Johnson 1978, here with best fit in place of first fit.
    """
    longest_first = [(int(lengths[index]), int(index)) for index in np.argsort(-lengths, kind="stable")]
    longest = longest_first[0][0]
    assert longest <= max_tokens, "the config door let max_tokens_per_gpu pass below max_length"
    fill = _best_fit if packed else _same_width
    number = math.ceil(len(fill(longest_first, max_tokens)) / multiple_of) * multiple_of
    limit = bisect_left(
        range(max_tokens), True, lo=longest, key=lambda limit: len(fill(longest_first, limit)) <= number
    )
    bins = fill(longest_first, limit)
    bins += [[] for _ in range(number - len(bins))]
    return [np.array(members, np.int64) for members in bins]


def _best_fit(longest_first: list[tuple[int, int]], limit: int) -> list[list[int]]:
    """Every sample into the fullest bin that still takes it: Σ length <= limit."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, which bin), sorted
    for length, index in longest_first:
        tightest = bisect_left(room, (length, 0))
        if tightest == len(room):
            free, which = limit, len(bins)
            bins.append([])
        else:
            free, which = room.pop(tightest)
        bins[which].append(index)
        insort(room, (free - length, which))
    return bins


def _same_width(longest_first: list[tuple[int, int]], limit: int) -> list[list[int]]:
    """Neighbours in length together, as many as fit when padded to the longest: samples x longest <= limit."""
    bins: list[list[int]] = []
    start = 0
    while start < len(longest_first):
        end = start + limit // longest_first[start][0]
        bins.append([index for _, index in longest_first[start:end]])
        start = end
    return bins
