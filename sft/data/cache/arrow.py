"""Numbers from NumPy into Arrow and back, without a copy and without pandas.

Arrow's own `array` and `to_numpy` import pandas wherever it is installed: a fifth of a second, at every start and in
every process that tokenises.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def to_arrow(values: np.ndarray) -> pa.Array:
    """Arrow's view of an array of one dim, which keeps it alive."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def to_numpy(array: pa.Array) -> np.ndarray:
    """NumPy's view of an array of numbers without nulls."""
    return np.from_dlpack(array)


def lists_to_arrow(arrays: Sequence[np.ndarray], dtype: type) -> pa.ListArray:
    """One list for each array, their numbers one after the other as `dtype`."""
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
    return pa.ListArray.from_arrays(to_arrow(offsets), to_arrow(values.astype(dtype, copy=False)))


def lists_to_numpy(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets [n + 1], values) of n lists of numbers."""
    return to_numpy(column.offsets), to_numpy(column.values)
