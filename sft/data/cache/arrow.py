"""Numbers from NumPy into Arrow and back, without a copy and without pandas.

Arrow's own `array` and `to_numpy` import pandas wherever it is installed: a fifth of a second, at every start and in
every process that tokenises.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def to_arrow(values: np.ndarray) -> pa.Array:
    """Return an array of one dim as an Arrow array, which shares its memory and keeps it alive."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def to_numpy(array: pa.Array) -> np.ndarray:
    """Return an Arrow array of numbers without nulls as a NumPy array that shares its memory."""
    return np.from_dlpack(array)


def lists_to_arrow(arrays: Sequence[np.ndarray], dtype: type) -> pa.ListArray:
    """Return an Arrow array that holds one list for each of these arrays, with numbers of `dtype`."""
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
    return pa.ListArray.from_arrays(to_arrow(offsets), to_arrow(values.astype(dtype, copy=False)))


def lists_to_numpy(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Return (offsets [n + 1], values) of n lists of numbers: list i is values[offsets[i]:offsets[i + 1]]."""
    return to_numpy(column.offsets), to_numpy(column.values)
