"""Where a text says the parts of a message, one after the other, in any of the spellings that templates use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

PLAIN = re.compile(r"[ !#-&(-\[\]-~]*")
"""Text that is spelt in one way: ASCII without quotes, backslashes and line breaks."""


def find_in_order(text: str, parts: Sequence[Any], at: int = 0) -> tuple[str | None, int]:
    """Look for all parts, in order, from `at` on: (None, where the last ends), or (the first one that is lacking, at).

    Each part takes the first place behind the one before it, so that no piece of the text speaks for two.
    """
    end, has_escapes = at, "\\" in text
    for part in parts:
        spellings = _spellings(part, has_escapes)
        ends = [place + len(spelt) for spelt in spellings if (place := text.find(spelt, end)) >= 0]
        if not ends:
            return str(part), at
        end = min(ends)
    return None, end


def last_place(part: str, text: str) -> int | None:
    """Return where `text` says the part for the last time, in any spelling; None if it does not, or all is blank."""
    places = [text.rfind(spelt) for spelt in _spellings(part, "\\" in text)] if part.strip() else []
    return max((place for place in places if place >= 0), default=None)


def find_call(text: str, function: dict[str, Any], at: int = 0) -> tuple[str | None, int]:
    """As find_in_order, for a call's name and all its arguments, keys and values down to the leaves.

    The name may stand before or behind the arguments, and these in the row's order or in that of their keys.
    """
    name, given = function["name"], function.get("arguments") or {}
    orders = list(_leaves(given)), list(_leaves(given, is_sorted=True))
    tried = [find_in_order(text, parts, at) for order in orders for parts in ([name, *order], [*order, name])]
    found = [end for missing, end in tried if missing is None]
    return (None, min(found)) if found else tried[0]


def _leaves(value: Any, is_sorted: bool = False) -> Iterator[Any]:
    if isinstance(value, dict):
        for key in sorted(value) if is_sorted else value:
            yield key
            yield from _leaves(value[key], is_sorted)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, is_sorted)
    else:
        yield value


def _spellings(part: Any, has_escapes: bool) -> set[str]:
    """Return a part as it is, as JSON (Llama 3 prints tool results so), as JSON inside JSON, and as Python prints it.

    has_escapes: whether the text has backslashes at all, without which no other spelling of a text can stand in it.
    """
    if not isinstance(part, str):
        return {json.dumps(part, default=str), str(part)}
    said = part.strip()
    if not has_escapes or PLAIN.fullmatch(said):
        return {said}
    as_json = [json.dumps(said, ensure_ascii=is_ascii)[1:-1] for is_ascii in (False, True)]
    return {said, repr(said)[1:-1], *as_json, *(json.dumps(text, ensure_ascii=False)[1:-1] for text in as_json)}
