"""What the token cache reads: rows, and how each of them becomes something to encode."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sft.data.chat import Conversation
from sft.data.documents import Document
from sft.data.formats import Columns, to_conversation, to_document
from sft.data.recognise import ROWS_LOOKED_AT, recognise, verdict
from sft.data.source import Row, count_rows, fingerprint_file, read_rows
from sft.errors import InputError
from sft.types import Sample

Item = Conversation | Document | Sample
"""What a row holds. A Sample comes tokenised and weighted already, from a class of the user's."""


@dataclass(frozen=True)
class RowSource:
    """Rows under one name: a file, or the items of a class.

    around_number: what stands around a row's number in its `where`: ("train.jsonl:", "")
    fingerprint:   gives JSON values, equal only if the rows, and the way they are read, are equal
    max_length:    of a sample made from plain text, which is cut into several; conversations stay whole
    """

    name: str
    around_number: tuple[str, str]
    fingerprint: Callable[[], list[Any]]
    columns_found: frozenset[str]
    read: Callable[[], Iterator[Row]]
    count: Callable[[], int]
    convert: Callable[[Row], Item]
    max_length: int


def rows_of_file(
    path: Path,
    columns: Columns,
    template_options: Mapping[str, Any],
    *,
    max_length: int,
    say: Callable[[str], None],
) -> RowSource:
    """The rows of a file in the format that its first rows show, which is said.

    Raises InputError for a file that cannot be read, that holds no rows, or whose format nobody knows.
    """
    first = list(itertools.islice(read_rows(path), ROWS_LOOKED_AT))
    if not first:
        raise InputError(f"{path} holds no rows; expected at least one. Write it again, or take it out of the list.")
    columns = recognise(first, columns, path.name)
    say(verdict(first, columns, path.name))
    is_text = columns.format == "text"
    return RowSource(
        name=path.name,
        around_number=(f"{path.name}:", ""),
        # The suffix decides how the file is read; only plain text is cut while it is tokenised.
        fingerprint=lambda: [
            fingerprint_file(path),
            path.suffix,
            columns.fingerprint(),
            max_length if is_text else None,
        ],
        columns_found=frozenset(column for _, cells in first for column in cells),
        read=partial(read_rows, path),
        count=partial(count_rows, path),
        convert=partial(to_document, columns=columns)
        if is_text
        else partial(to_conversation, columns=columns, template_options=dict(template_options)),
        max_length=max_length,
    )


def differences(sources: list[RowSource]) -> list[str]:
    """One line for each file whose columns are not those of the first: "b.jsonl lacks the column tools of a.jsonl"."""
    lines = []
    for source in sources[1:]:
        first = sources[0]
        for who, whose in ((source, first), (first, source)):
            if lacks := sorted(whose.columns_found - who.columns_found):
                lines.append(f"{who.name} lacks the column{'s' * (len(lacks) > 1)} {', '.join(lacks)} of {whose.name}")
    return lines
