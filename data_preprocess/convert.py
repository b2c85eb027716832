"""A source -> one parquet file per split, in two looks.

The first look proves and counts the rows, the second writes them: a corpus may be larger than memory, and nothing
is written before all of it is known to be good.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from data_preprocess.exchange import Exchange, UnusableRowError, schema, to_row
from data_preprocess.source import SPLITS, NamedRow, Rows

ToExchange = Callable[[dict[str, Any]], Exchange]
VAL_FRACTION = 0.02
ROWS_AT_ONCE = 4096


@dataclass
class Tally:
    """What the first look at a split found."""

    usable: int = 0
    dropped: dict[str, Cause] = field(default_factory=dict)
    noted: dict[str, Cause] = field(default_factory=dict)
    message_keys: set[str] = field(default_factory=set)
    facts: set[str] = field(default_factory=set)
    columns: set[str] = field(default_factory=set)

    @property
    def num_dropped(self) -> int:
        return sum(cause.rows for cause in self.dropped.values())


@dataclass
class Cause:
    """Rows that met the same fate, and the first of them."""

    first: str
    rows: int = 0


def convert(
    source: Mapping[str, Rows],
    to_exchange: ToExchange,
    out: Path,
    *,
    data_source: str,
    val_fraction: float | None = None,
    seed: int = 1,
    strict: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, int]:
    """Write out/{split}.parquet for every split, all of them or none; returns the rows of each.

    Where train is all there is, val_fraction of its rows (None: VAL_FRACTION), at least one, become test; of a single
    row none does, unless val_fraction asks for it, which is an error.
    Raises ValueError for a split without a usable row and, if strict, for any unusable row.
    """
    tallies = {split: _look(split, rows, to_exchange) for split, rows in source.items()}
    for split, tally in tallies.items():
        _judge(split, tally, strict)
        say(f"{split}: {tally.usable + tally.num_dropped} rows read, {tally.num_dropped} dropped")
        for line in [*_lines("dropped", tally.dropped), *_lines("noted", tally.noted)]:
            say(f"  {line}")
    drawn = _draw_test(tallies, val_fraction, seed)

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for split, raws in source.items():
            total = tallies[split].usable + tallies[split].num_dropped
            usable = _exchanges(_watched(raws.read(), f"{split}, writing", total), to_exchange, dropped={})
            for number, (index, _, exchange) in enumerate(usable):
                part = "test" if number in drawn else split
                yield part, to_row(exchange, data_source=data_source, split=part, index=index)

    parts = [*source, "test"] if drawn else list(source)
    paths = {part: out / f"{part}.parquet" for part in parts}
    _keep_sources(source, paths)
    written = write_parquet(rows(), paths, _schema(tallies.values()))
    for part, count in written.items():
        say(f"{paths[part]}: {count} rows")
    if set(source) == {"train"} and val_fraction is None and not drawn:
        say("no test was drawn: train has a single row")
    if drawn:
        say(f"test was drawn from train with --seed {seed}: --val_fraction sets its size, 0 draws none")
    for old in (out / f"{split}.parquet" for split in SPLITS if split not in parts):
        if old.exists():
            say(f"{old}: of an earlier run, left as it was")
    return written


def write_parquet(
    rows: Iterable[tuple[str, dict[str, Any]]], paths: Mapping[str, Path], columns: pa.Schema
) -> dict[str, int]:
    """Write each row into the file of its part; returns the rows of each. All files appear complete, or none.

    rows: (part, row). The same rows give the same bytes.
    """
    asides = {part: path.with_name(f".{path.name}.{os.getpid()}") for part, path in paths.items()}
    waiting: dict[str, list[dict[str, Any]]] = {part: [] for part in paths}
    written = dict.fromkeys(paths, 0)
    try:
        with ExitStack() as stack:
            files: dict[str, pq.ParquetWriter] = {}
            for part, aside in asides.items():
                aside.parent.mkdir(parents=True, exist_ok=True)
                files[part] = stack.enter_context(pq.ParquetWriter(aside, columns))

            def flush(part: str) -> None:
                files[part].write_batch(pa.RecordBatch.from_pylist(waiting[part], columns))
                written[part] += len(waiting[part])
                waiting[part].clear()

            for part, row in rows:
                waiting[part].append(row)
                if len(waiting[part]) == ROWS_AT_ONCE:
                    flush(part)
            for part in paths:
                flush(part)
        for part, aside in asides.items():
            aside.replace(paths[part])
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
    return written


def _look(split: str, rows: Rows, to_exchange: ToExchange) -> Tally:
    tally = Tally()
    raws = _watched(rows.read(), f"{split}, reading", rows.expected)
    for _, where, exchange in _exchanges(raws, to_exchange, tally.dropped):
        tally.usable += 1
        tally.message_keys.update(*exchange.prompt, exchange.reply)
        tally.facts.update(exchange.facts)
        tally.columns.update(exchange.columns)
        for note in exchange.notes:
            tally.noted.setdefault(note, Cause(where)).rows += 1
    return tally


def _exchanges(
    raws: Iterable[NamedRow], to_exchange: ToExchange, dropped: dict[str, Cause]
) -> Iterator[tuple[int, str, Exchange]]:
    """(place in the split, where, exchange) of every usable row; the others are counted in `dropped`."""
    for index, (where, raw) in enumerate(raws):
        try:
            exchange = to_exchange(raw)
        except UnusableRowError as error:
            dropped.setdefault(error.cause, Cause(f"{where}: {error.found}")).rows += 1
        else:
            yield index, where, exchange


def _judge(split: str, tally: Tally, strict: bool) -> None:
    causes = "; ".join(_lines("unusable", tally.dropped))
    if not tally.usable:
        raise ValueError(f"{split} has no usable row: {causes or 'it has no rows'}. See --help for the columns' names.")
    if strict and causes:
        raise ValueError(f"{split}: {causes}. Mend them, or leave out --strict to drop them.")


def _lines(fate: str, causes: Mapping[str, Cause]) -> list[str]:
    return [f"{fate} {cause.rows}: {name} (first {cause.first})" for name, cause in causes.items()]


def _draw_test(tallies: Mapping[str, Tally], val_fraction: float | None, seed: int) -> frozenset[int]:
    """Which usable rows of train become test, by their number; none where the source has another split."""
    if set(tallies) != {"train"}:
        if val_fraction is not None:
            raise ValueError(f"--val_fraction divides train, but the source has its own splits: {', '.join(tallies)}.")
        return frozenset()
    fraction = VAL_FRACTION if val_fraction is None else val_fraction
    if not 0 <= fraction < 1:
        raise ValueError(f"--val_fraction={fraction} must be at least 0 and less than 1.")
    usable = tallies["train"].usable
    count = max(1, round(usable * fraction)) if fraction else 0
    if count == usable == 1 and val_fraction is None:
        return frozenset()
    if count == usable:
        raise ValueError(f"--val_fraction={fraction} of {usable} rows leaves none to train; 0 draws none.")
    return frozenset(random.Random(seed).sample(range(usable), count))


def _keep_sources(source: Mapping[str, Rows], paths: Mapping[str, Path]) -> None:
    targets = {path.resolve() for path in paths.values()}
    for rows in source.values():
        for file in rows.files:
            if file.resolve() in targets:
                raise ValueError(f"{file} is a source and would be written over; choose another --local_dir.")


def _schema(tallies: Iterable[Tally]) -> pa.Schema:
    """One for all splits, or a file could not be read together with the next."""
    message_keys, facts, columns = set[str](), set[str](), set[str]()
    for tally in tallies:
        message_keys |= tally.message_keys
        facts |= tally.facts
        columns |= tally.columns
    return schema(message_keys, facts, columns)


def _watched(rows: Iterable[NamedRow], what: str, total: int | None) -> Iterable[NamedRow]:
    """Return the rows; a progress bar where a person is watching."""
    console = Console(stderr=True)
    return track(rows, what, total, console=console, transient=True, disable=not console.is_terminal)
