"""Which rows data.val_fraction keeps for validation: decided by what a row says, so by nothing else.

A row's key is the hash of its messages (or its text) and tools. Rows that say the same have the same key, and so the
same fate; a row keeps it on every machine, in any order, with any tokenizer and template, and when rows are added.
"""

from __future__ import annotations

import numpy as np

from sft.data.cache.store import SampleStore

HASHES = 2.0**64


def held_out(store: SampleStore, entry_starts: np.ndarray, share: float) -> np.ndarray:
    """Return for every sample whether its row is held out, bool [samples].

    entry_starts: the first sample of each entry, and behind them the number of all samples, int64 [entries + 1]
    share:        below 1, the part of all rows; else how many rows of each entry: those with the smallest keys, so that
                  a row that is added takes the place of at most one
    """
    if not len(store):
        return np.zeros(0, bool)
    first = store.row_starts()
    keys = store.contents[first]
    if share < 1:
        chosen = keys < np.uint64(share * HASHES)
    else:
        entry = np.searchsorted(entry_starts, first, side="right") - 1
        smallest = [np.unique(keys[entry == n])[: int(share)] for n in range(len(entry_starts) - 1)]
        chosen = np.isin(keys, np.concatenate(smallest))
    return np.repeat(chosen, np.diff([*first, len(store)]))
