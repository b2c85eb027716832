"""Draw permutations that depend on nothing but (seed, turn, purpose)."""

from __future__ import annotations

import numpy as np

OF_EPOCHS, OF_PASSES, OF_STEPS, OF_ROWS = range(4)
"""What a permutation is for. Each purpose has its own random numbers."""


def permutation(number: int, seed: int, turn: int, purpose: int = OF_EPOCHS, which: int = 0) -> np.ndarray:
    """Return a permutation of 0 ..

    number-1, int64. Philox is keyed and counts, so turns and purposes share no stream.
    """
    return np.random.Generator(np.random.Philox(key=[seed, turn], counter=[0, 0, purpose, which])).permutation(number)
