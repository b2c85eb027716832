"""Which samples a step trains, and which rank computes which of them: pure functions, no communication.

The order of the samples is a function of (seed, epoch, number of samples) alone. World size and micro-batch
size only decide who computes what. So the state of the data is one integer, the step.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Optimizer steps in one pass over the data; the last one may be smaller, none is dropped."""
    return math.ceil(num_samples / batch_size)


def position(step: int, num_samples: int, batch_size: int) -> tuple[int, int]:
    """(epoch, index of the step within that epoch), both from 0, of a step counted from 1."""
    return divmod(step - 1, steps_per_epoch(num_samples, batch_size))


@lru_cache(maxsize=2)
def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of all sample ids, int64 [num_samples]. Philox is keyed, so epochs need no shared stream."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_samples)


def step_samples(step: int, *, num_samples: int, batch_size: int, seed: int) -> np.ndarray:
    """Sample ids of optimizer step `step` (1 = the first), the same on every rank, int64 [<= batch_size]."""
    epoch, index = position(step, num_samples, batch_size)
    return epoch_order(num_samples, seed, epoch)[index * batch_size : (index + 1) * batch_size]


def micro_batches(sample_ids: np.ndarray, *, dp_size: int, dp_rank: int, micro_batch_size: int) -> list[np.ndarray]:
    """The micro-batches one data-parallel rank computes for a step.

    Every rank gets the same number of them, because every forward is a collective under FSDP; where the
    samples do not go around, the last ones are smaller or empty.
    """
    most_samples = math.ceil(len(sample_ids) / dp_size)
    mine = sample_ids[dp_rank::dp_size]
    return [mine[start : start + micro_batch_size] for start in range(0, most_samples, micro_batch_size)]
