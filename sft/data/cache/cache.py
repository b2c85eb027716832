"""Samples on disk: tokenised once, then memory-mapped by every rank and every later run.

One directory per (rows, format, columns, tokenizer, template, supervision), named by the hash of all of them, so that
nothing stale can be served. It is written aside, sealed with the hashes of its files, brought to the disk and renamed:
it exists or it does not. Whoever opens it reads every byte against the seal; what differs is tokenised again. That is
cheaper than the disk for a few rows, so a small cache does not wait for it: 400 files of a row would wait 2,000 times.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
from filelock import FileLock
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from sft.data.cache.facts import FACTS_FILE, CacheFacts
from sft.data.cache.notes import leave_note, leaves_notes, next_number, note_whole, word_of_builder
from sft.data.cache.seal import problem_of, seal
from sft.data.cache.tokenise import Recipe, schema_of, tokenise
from sft.data.cache.workers import map_in_order, processes_for
from sft.data.rows.source import RowSource
from sft.data.types import Row
from sft.errors import InputError, MishapError, OwnMishapError
from sft.files import explaining_disk, sync_directory

FORMAT = 10
"""Raise when the meaning of the cached bytes changes."""

SAMPLES_FILE = "samples.arrow"
FILES = (SAMPLES_FILE, FACTS_FILE)
POLL_S = 0.05
WORD_S = 10.0
"""How long a rank waits for its node's builder to leave word of a cache, before it looks at what is there itself."""

SAY_EVERY_S = 30.0
ROWS_AT_ONCE = 256  # few, so that no process is still at its last ones while the others have none left
ROWS_PER_PROCESS = 1024  # fewer are not worth a fork
ROWS_WORTH_THE_DISK = 1024  # fewer are tokenised again after a power cut
ROWS_PER_VERDICT = 1024  # whose problems are listed together


@dataclass(frozen=True)
class CachedRows:
    """The rows of one file (or class), tokenised: where the samples lie, and what identifies them."""

    name: str
    around_number: tuple[str, str]
    directory: Path
    key: str
    facts: CacheFacts

    @property
    def rows(self) -> int:
        """Return how many rows were read."""
        return self.facts.counts.rows

    def where(self, number: int) -> str:
        """Return the row of that number, named as in every other message about it: "train.jsonl:12"."""
        before, after = self.around_number
        return f"{before}{number}{after}"

    def remarks(self) -> list[str]:
        """Return a line for each kind of rows that did not become one sample each; said at every start."""
        return [f"{self.name}: {remark}" for remark in self.facts.remarks()]


def cached(
    source: RowSource,
    recipe: Recipe,
    *,
    max_rows: int | None,
    bad_rows: str,
    cache_dir: Path,
    build_here: bool,
    say: Callable[[str], None],
    num_workers: int | None = 1,
) -> CachedRows:
    """Return the cached samples of `source`; tokenises it first where they are not there.

    bad_rows:    "error" raises InputError listing the rows that cannot be used; "drop" leaves them out, and says so
    num_workers: processes that tokenise, None for one per core; the samples are the same for any number

    One process per node builds (build_here); the others wait for the directory to appear. No collective is
    held meanwhile, so tokenising may take longer than any timeout; if the builder dies, torchrun ends the rest.
    Raises MishapError where the file changes meanwhile, or where the cache cannot be written.
    """
    number = next_number()
    version, key = source.version(), _key(source, recipe, max_rows, bad_rows)  # in this order: what comes between shows
    directory = cache_dir / key
    if build_here:
        what = f"data.cache_dir={cache_dir}: the tokens of {source.name}"
        with explaining_disk(what, "Make room there, or set data.cache_dir to a directory that has it."):
            _make(cache_dir)
            leave_note(cache_dir, number, key)
            if problem_of(directory, FILES) is not None:
                with FileLock(cache_dir / f"{key}.lock"):
                    # Another run may have built it while we waited.
                    if (problem := problem_of(directory, FILES)) is not None:
                        _remove_damaged(directory, problem, say)

                        def is_unchanged() -> bool:
                            return source.version() == version and _key(source, recipe, max_rows, bad_rows) == key

                        _build(source, recipe, directory, max_rows, bad_rows, num_workers, say, is_unchanged)
            note_whole(cache_dir, number)
    else:
        _wait_for(directory, source.name, cache_dir, number)
    return CachedRows(source.name, source.around_number, directory, key, CacheFacts.read(directory, source.name))


def _make(cache_dir: Path) -> None:
    """Make the directory of all caches. Raises InputError where the path cannot be one."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        raise InputError(
            f"data.cache_dir={cache_dir} cannot be made: {error.filename} is a file, a link that leads nowhere, or in "
            "a place that takes no directories. Set data.cache_dir to a directory of your own."
        ) from error


def _key(source: RowSource, recipe: Recipe, max_rows: int | None, bad_rows: str) -> str:
    """Return the name of the cache: of the rows as they are at this moment, and of all that makes samples of them."""
    ingredients = [FORMAT, *source.fingerprint(), *recipe.fingerprint(), max_rows, bad_rows]
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]


def _wait_for(directory: Path, name: str, cache_dir: Path, number: int) -> None:
    """Return when the cache is there and whole. Raises OwnMishapError if this node's builder reads other rows.

    The builder's word is taken: it has hashed the bytes on this node. Where none is left, this rank hashes them itself.
    """
    looked_at, alone_from = None, time.monotonic() + (WORD_S if leaves_notes() else 0.0)
    while True:
        word = word_of_builder(cache_dir, number)
        if word and word.key != directory.name:
            raise OwnMishapError(
                f"{name} was changed while the run started: the rank that tokenises it for this node has read other "
                "rows than this rank found. Give data.train_files a file that nobody writes to, and start again."
            )
        if word and word.is_whole:
            return
        if word is None and time.monotonic() >= alone_from:
            with suppress(OSError):
                status = directory.stat()
                there = status.st_ino, status.st_ctime_ns  # built again, it is another one
                if there != looked_at and problem_of(directory, FILES) is None:
                    return
                looked_at = there
        time.sleep(POLL_S)


def _remove_damaged(directory: Path, problem: str, say: Callable[[str], None]) -> None:
    """Take a cache that is not what was written out of the way; runs that have it open keep what they see."""
    if not directory.exists():
        return
    say(f"warning: the token cache {directory} is damaged ({problem}); its rows are tokenised again")
    aside = directory.with_name(f".{directory.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    directory.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _build(
    source: RowSource,
    recipe: Recipe,
    directory: Path,
    max_rows: int | None,
    bad_rows: str,
    num_workers: int | None,
    say: Callable[[str], None],
    is_unchanged: Callable[[], bool],
) -> None:
    """Tokenise the rows into `directory`, whole or not at all.

    is_unchanged: whether the rows are still those that the directory is named after; asked when all have been read
    """
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # a build that was killed; the lock says that it is not alive
    aside.mkdir()
    started = time.monotonic()
    facts = CacheFacts(source.name)
    counts = facts.counts
    mistakes = 0
    num_rows = _count(source, max_rows)
    processes = processes_for(num_workers if source.is_plain else 1, -(-num_rows // ROWS_PER_PROCESS))
    chunks = _chunks(source, max_rows, num_rows, say)
    parts = map_in_order(partial(tokenise, source=source, recipe=recipe), chunks, processes)
    try:
        with (
            closing(parts),
            pa.OSFile(str(aside / SAMPLES_FILE), "wb") as sink,
            pa.ipc.new_file(sink, schema_of(source)) as writer,
        ):
            for part in parts:
                if part.mistakes and bad_rows == "drop":
                    raise InputError(f"{part.mistakes[0]} (data.bad_rows=drop leaves out bad rows, not this.)")
                writer.write_batch(part.batch)
                mistakes += len(part.mistakes)
                facts.add(part.counts, bad=part.bad, untrained=part.untrained, typed=part.typed)
                if bad_rows == "error" and counts.bad_rows and counts.rows % ROWS_PER_VERDICT == 0:
                    break
        if bad_rows == "error" and counts.bad_rows:
            raise InputError(_listed(facts.first_bad, counts.bad_rows, counts.rows, mistakes))
        facts.write(aside)
        is_small = counts.rows < ROWS_WORTH_THE_DISK
        seal(aside, FILES, durable=not is_small)
        if not is_unchanged():
            raise MishapError(
                f"{source.name} was changed while it was tokenised. Give data.train_files a file that nobody writes "
                "to, and start again."
            )
        aside.rename(directory)
        if not is_small:
            sync_directory(directory.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    made = f"{counts.samples:,} samples, {counts.tokens:,} tokens in {time.monotonic() - started:.1f} s"
    say(f"tokenised {source.name}: {counts.rows:,} rows -> {made}")


def _count(source: RowSource, max_rows: int | None) -> int:
    return source.count() if max_rows is None else min(source.count(), max_rows)


def _chunks(source: RowSource, max_rows: int | None, num_rows: int, say: Callable[[str], None]) -> Iterator[list[Row]]:
    """Yield the rows in lists of ROWS_AT_ONCE; a progress bar where a person is watching, else a line now and then."""
    rows: Iterable = itertools.islice(source.read(), max_rows)
    console = Console(stderr=True)
    title = f"tokenising {source.name}"
    if console.is_terminal:
        watched = iter(track(rows, escape(title), num_rows, console=console, transient=True))
    else:
        watched = _told(rows, title, num_rows, say)
    return iter(lambda: list(itertools.islice(watched, ROWS_AT_ONCE)), [])


def _told(rows: Iterable[Row], title: str, num_rows: int, say: Callable[[str], None]) -> Iterator[Row]:
    """Yield the same rows; every SAY_EVERY_S say how many there were."""
    due = time.monotonic() + SAY_EVERY_S
    for number, row in enumerate(rows):
        if time.monotonic() >= due:
            say(f"{title}: {number:,} of {num_rows:,} rows")
            due += SAY_EVERY_S
        yield row


def _listed(first: Sequence[str], num_bad: int, num_rows: int, mistakes: int) -> str:
    """Return the message about bad rows; mistakes: how many of them data.bad_rows=drop would not excuse."""
    shown = "\n  ".join(dict.fromkeys(first))
    more = f"\n  and {num_bad - len(first)} more" if num_bad > len(first) else ""
    way_out = "Mend them, or set data.bad_rows=drop to leave such rows out."
    if mistakes:
        others = "the other rows" if mistakes < num_bad else "bad rows, not this"
        way_out = f"Mend the configuration as it says there: data.bad_rows=drop leaves out {others}."
    return f"{num_bad} of {num_rows} rows cannot be used:\n  {shown}{more}\n{way_out}"
