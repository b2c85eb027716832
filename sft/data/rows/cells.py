"""Single cells of a row: taken out by name, checked, and shown in messages about them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sft.data.chat.values import plain
from sft.data.types import RowError

Cells = dict[str, Any]


def nested(cells: Cells, where: str, knob: str, key: str, dict_keys: tuple[str, ...], *, in_text: bool) -> Any:
    """Return the value of a column; where it is a struct (in_text: or a JSON object as text), what the dict keys lead
    to.
    """
    value = present(cells, key, where, knob)
    for dict_key in dict_keys:
        struct = parsed(value) if in_text else value
        if not isinstance(struct, dict):
            break
        if dict_key not in struct:
            if isinstance(value, str):
                break  # text that happens to be a JSON object
            raise RowError(f"{where}: {knob}={key} is a struct without {dict_key!r}; it has {few(struct)}.")
        value = struct[dict_key]
    return value


def present(cells: Cells, key: str, where: str, knob: str = "") -> Any:
    """Return the value of a column, which the row must have.

    Raises RowError naming `knob`, which chooses the column.
    """
    if key not in cells:
        way_out = f"Set {knob}." if knob else "Every row of a file has the same format; data.format names another."
        raise RowError(f"{where}: no column {key!r}; found {few(cells)}. {way_out}")
    return cells[key]


def text(cells: Cells, key: str, where: str, knob: str = "") -> str:
    """Return what a column of a row holds, if it is text. Raises RowError if it is not, or if it is not there.

    knob: the key that chooses the column, for the message
    """
    value = present(cells, key, where, knob)
    if not isinstance(value, str):
        raise RowError(f"{where}: column {key!r} holds {short(value)}, expected text.")
    return value


def optional_text(cells: Cells, key: str, where: str) -> str:
    """Return the text of a column that may be null or absent: then ""."""
    return "" if cells.get(key) is None else text(cells, key, where)


def optional_texts(cells: Cells, key: str, where: str) -> str:
    """As optional_text; a list of texts is joined by blank lines."""
    value = plain(parsed(cells.get(key)))
    if not isinstance(value, list):
        return optional_text(cells, key, where)
    if not all(isinstance(item, str) for item in value):
        raise RowError(f"{where}: column {key!r} holds {short(value)}, expected text or a list of texts.")
    return "\n\n".join(value)


def parsed(value: Any) -> Any:
    """Return the object or list that a text cell holds, or the cell itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def short(value: Any) -> str:
    """Return a found value as a message shows it: its type and its first 80 characters."""
    shown = repr(value[:80] if isinstance(value, str | bytes) else value)
    cut = len(shown) > 90 or (isinstance(value, str | bytes) and len(value) > 80)
    return f"{type(value).__name__} {shown[:90]}{'…' if cut else ''}"


def few(names: Iterable[str]) -> str:
    """Return the names of columns, the first dozen."""
    shown = sorted(str(name)[:60] for name in names)
    return str(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
