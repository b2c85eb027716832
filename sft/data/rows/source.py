"""What the token cache reads: rows, and how each of them becomes something to encode."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from sft.config.visible import visible_line
from sft.data.rows.cells import few, short
from sft.data.rows.files import count_rows, fingerprint_file, read_rows, version_of_file
from sft.data.rows.formats import Columns, to_conversation, to_document
from sft.data.rows.recognise import ROWS_LOOKED_AT, recognise
from sft.data.rows.verdict import verdict
from sft.data.shuffle import OF_ROWS, permutation
from sft.data.types import Conversation, Document, Row, RowError
from sft.errors import InputError
from sft.types import Sample

Item = Conversation | Document | Sample
"""What a row holds. A Sample comes tokenised and weighted already, from a class of the user's."""


@dataclass(frozen=True)
class RowSource:
    """Rows under one name: a file, or the items of a class.

    around_number: what stands around a row's number in its `where`: ("train.jsonl:", "")
    fingerprint:   gives JSON values, equal only if the rows, and the way they are read, are equal
    version:       gives another value once somebody has written to the file, even if it was put back since
    max_length:    of a sample made from plain text, which is cut into several; conversations stay whole
    is_plain:      rows hold JSON values alone, so that another process may convert them
    difficulty:    of a row, where a curriculum goes by a column; raises RowError for a row without such a number
    """

    name: str
    around_number: tuple[str, str]
    fingerprint: Callable[[], list[Any]]
    columns_found: frozenset[str]
    format: str
    read: Callable[[], Iterator[Row]]
    count: Callable[[], int]
    convert: Callable[[Row], Item]
    max_length: int
    is_plain: bool
    difficulty: Callable[[Row], float] | None = None
    version: Callable[[], Any] = lambda: None


def rows_of_file(
    path: Path,
    columns: Columns,
    template_options: Mapping[str, Any],
    *,
    max_length: int,
    say: Callable[[str], None],
    name: str | None = None,
    sorted_by: str | None = None,
    variables: frozenset[str] | None = None,
    keys_read: frozenset[str] = frozenset(),
) -> RowSource:
    """Recognise the format of a file by its first rows, say it, and return the file's rows in that format.

    name: what messages call the file; None: the last part of its path
    sorted_by, variables, keys_read: for what is said (see `verdict`)

    Raises InputError for a file that cannot be read, that holds no rows, or whose format nobody knows.
    """
    name = name or visible_line(path.name)
    first = list(itertools.islice(read_rows(path, name), ROWS_LOOKED_AT))
    if not first:
        raise InputError(f"{path} holds no rows; expected at least one. Write it again, or take it out of the list.")
    columns = recognise(first, columns, name)
    say(verdict(first, columns, name, sorted_by=sorted_by, variables=variables, keys_read=keys_read))
    is_text = columns.format == "text"
    return RowSource(
        name=name,
        around_number=(f"{name}:", ""),
        # The suffix decides how the file is read; only plain text is cut while it is tokenised.
        fingerprint=lambda: [
            fingerprint_file(path),
            path.suffix,
            columns.fingerprint(),
            max_length if is_text else None,
        ],
        columns_found=frozenset(column for _, cells in first for column in cells),
        format=columns.format,
        read=partial(read_rows, path, name),
        count=partial(count_rows, path),
        convert=partial(to_document, columns=columns)
        if is_text
        else partial(to_conversation, columns=columns, template_options=dict(template_options)),
        max_length=max_length,
        is_plain=True,
        version=partial(version_of_file, path),
    )


def differences(sources: list[RowSource]) -> list[str]:
    """One line for each file whose columns are not those of the first: "b.jsonl lacks the column tools of a.jsonl".

    The first of its format: files of several formats have other columns, and their verdicts say so.
    """
    lines = []
    first_of: dict[str, RowSource] = {}
    for source in sources:
        first = first_of.setdefault(source.format, source)
        for who, whose in ((source, first), (first, source)):
            if lacks := sorted(whose.columns_found - who.columns_found):
                lines.append(f"{who.name} lacks the column{'s' * (len(lacks) > 1)} {', '.join(lacks)} of {whose.name}")
    return lines


def draw(sources: Sequence[RowSource], number: int, *, seed: int, name: str) -> list[RowSource]:
    """Return the same sources with `number` of their rows, drawn by seed without replacement; in file order.

    Raises InputError if they hold fewer. Which rows are drawn depends on the seed and on how many there are.
    """
    counts = [source.count() for source in sources]
    total = sum(counts)
    if number > total:
        raise InputError(
            f"data.mixture: {number:,} rows of {name} are asked for, and it holds {total:,}; ask for fewer (rows are "
            "not drawn twice), or let it be seen more often by its weight."
        )
    drawn = np.zeros(total, bool)
    drawn[permutation(total, seed, 0, OF_ROWS)[:number]] = True
    parts = np.split(drawn, np.cumsum(counts)[:-1])
    return [_only(source, part) for source, part in zip(sources, parts, strict=True) if part.any()]


def _only(source: RowSource, chosen: np.ndarray) -> RowSource:
    return replace(
        source,
        read=lambda: itertools.compress(source.read(), chosen),
        count=lambda: int(chosen.sum()),
        fingerprint=lambda: [*source.fingerprint(), hashlib.sha256(np.packbits(chosen).tobytes()).hexdigest()],
    )


def with_difficulty(source: RowSource, column: str, *, insist: bool) -> RowSource:
    """Return the same rows, each with the number in `column` as its difficulty.

    Raises InputError, if insist, for a column that none of the first rows has.
    """
    if insist and source.columns_found and column not in source.columns_found:
        close = get_close_matches(column, [*source.columns_found, "length"], n=1)
        raise InputError(
            f"data.curriculum={column} sorts by a column that {source.name} does not have; "
            f"{f'did you mean {close[0]}? Found' if close else 'found'} {few(source.columns_found)} "
            "(length, without a column, goes by tokens)."
        )
    return replace(
        source,
        difficulty=partial(difficulty_of, column=column),
        fingerprint=lambda: [*source.fingerprint(), ["difficulty", column]],
    )


def difficulty_of(row: Row, column: str) -> float:
    """Return the number in a column of the row. Raises RowError where there is none."""
    where, cells = row
    if column not in cells:
        raise RowError(f"{where}: no column {column!r}, which data.curriculum={column} sorts by; found {few(cells)}.")
    value = cells[column]
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise RowError(
            f"{where}: {column} is {short(value)}, expected a number (data.curriculum={column} sorts by it)."
        )
    return float(value)
