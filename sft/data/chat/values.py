"""Values that JSON has no words for: arrays, times and decimals from Arrow, numpy and pandas."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

PLAIN = frozenset({str, int, float, bool, type(None)})


def plain(value: Any, *, drop_nulls: bool = False) -> Any:
    """Return the value as JSON has it, where it is clear how: arrays as lists, times as ISO text, decimals as numbers.

    drop_nulls: leave out the dict keys that hold None, at any depth. What has no such form stays as it is: see
    `path_of_non_json`.
    """
    kind = type(value)
    if kind in PLAIN:  # nearly every one
        return value
    if isinstance(value, Mapping):
        return {
            key: plain(item, drop_nulls=drop_nulls) for key, item in value.items() if not (drop_nulls and item is None)
        }
    if isinstance(value, list | tuple):
        return [plain(item, drop_nulls=drop_nulls) for item in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat() if value == value else None  # pandas.NaT is a time that is none
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, UUID):
        return str(value)
    if getattr(getattr(value, "dtype", None), "kind", "") == "M":  # numpy's times: tolist() makes numbers of some
        return plain(value.astype(str).tolist())
    if hasattr(value, "tolist"):  # of numpy and torch, arrays and their scalars
        return plain(value.tolist(), drop_nulls=drop_nulls)
    return value


def path_of_non_json(value: Any, path: str) -> tuple[str, Any] | None:
    """Return the path of the first thing inside that JSON cannot say (bytes, NaN, an object), and the thing; or None.

    path: of the value itself, as in "messages[0].content"
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, value)
    if type(value) in PLAIN:
        return None
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            return f"the key {odd[0]!r} of {path}", odd[0]
        inside = value.items()
        return next((found for key, item in inside if (found := path_of_non_json(item, f"{path}.{key}"))), None)
    if isinstance(value, list | tuple):
        items = enumerate(value)
        return next((found for n, item in items if (found := path_of_non_json(item, f"{path}[{n}]"))), None)
    return path, value


def is_empty(value: Any) -> bool:
    """Return True if a value says nothing: null, blank text, JSON text of nothing, or a list or object of such."""
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip() in ("", "null", "[]", "{}", "None")
    if isinstance(value, float):
        return math.isnan(value)  # pandas' null
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_empty, value))
    return hasattr(value, "tolist") and is_empty(value.tolist())


def _number(value: Decimal) -> int | float | str:
    """Return the decimal as a JSON number that is written with its digits; as text where a float has too few."""
    if value.is_finite() and value == value.to_integral_value() and value.as_tuple().exponent == 0:
        return int(value)
    as_float = float(value)
    return as_float if Decimal(repr(as_float)) == value else str(value)
