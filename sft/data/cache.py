"""Samples on disk: tokenised once, then memory-mapped by every rank and every later run.

One directory per (rows, format, columns, tokenizer, template, supervision), named by the hash of all of them, so that
nothing stale can be served. It is written aside and renamed: it exists or it does not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock
from rich.console import Console
from rich.progress import track

from sft.data.rows import RowSource
from sft.data.source import Row
from sft.data.tokenise import Recipe, schema_of, tokenise
from sft.errors import InputError

FORMAT = 7
"""Raise when the meaning of the cached bytes changes."""

SAMPLES_FILE = "samples.arrow"
ROWS_AT_ONCE = 1024
MAX_BAD_ROWS_SHOWN = 10
MAX_PLACES = 5  # rows that are named as examples of something


@dataclass(frozen=True)
class CachedRows:
    """The rows of one file (or class), tokenised: where the samples lie, and what identifies them."""

    name: str
    around_number: tuple[str, str]
    directory: Path
    key: str
    rows: int
    facts: Mapping[str, Any]  # what tokenising counted, and the first rows of each kind

    def where(self, number: int) -> str:
        """The row of that number, named as in every other message about it: "train.jsonl:12"."""
        before, after = self.around_number
        return f"{before}{number}{after}"


def cached(
    source: RowSource,
    recipe: Recipe,
    *,
    max_rows: int | None,
    bad_rows: str,
    cache_dir: Path,
    build_here: bool,
    say: Callable[[str], None],
) -> CachedRows:
    """The cached samples of `source`, tokenising it first if need be.

    bad_rows: "error" raises InputError listing the rows that cannot be used; "drop" leaves them out, and says so

    One process per node builds (build_here); the others wait for the directory to appear. No collective is
    held meanwhile, so tokenising may take longer than any timeout; if the builder dies, torchrun ends the rest.
    """
    ingredients = [FORMAT, *source.fingerprint(), *recipe.fingerprint(), max_rows, bad_rows]
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]
    directory = cache_dir / key
    if build_here and not directory.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{key}.lock"):
            if not directory.exists():  # another run may have built it while we waited
                _build(source, recipe, directory, max_rows, bad_rows, say)
    while not directory.exists():
        time.sleep(0.05)
    facts = _read_facts(directory, source.name)
    for remark in _remarks(facts):
        say(f"{source.name}: {remark}")
    return CachedRows(source.name, source.around_number, directory, key, facts["rows"], facts)


def _build(
    source: RowSource,
    recipe: Recipe,
    directory: Path,
    max_rows: int | None,
    bad_rows: str,
    say: Callable[[str], None],
) -> None:
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # a build that was killed; the lock says that it is not alive
    aside.mkdir()
    started = time.monotonic()
    total: Counter[str] = Counter(rows=0, samples=0, tokens=0)
    bad: list[str] = []
    untrained: list[str] = []
    typed: list[str] = []
    try:
        with pa.OSFile(str(aside / SAMPLES_FILE), "wb") as sink, pa.ipc.new_file(sink, schema_of(source)) as writer:
            for rows in _with_progress(source, max_rows):
                encoded = tokenise(rows, source, recipe)
                if encoded.bad and bad_rows == "error":
                    raise InputError(_listed(encoded.bad, len(rows)))
                writer.write_batch(encoded.batch)
                bad += encoded.bad
                untrained = (untrained + encoded.untrained)[:MAX_PLACES]
                typed = (typed + encoded.typed)[:MAX_PLACES]
                total.update(encoded.counts)
                total.update(
                    {
                        "rows": len(rows),
                        "samples": len(encoded.batch),
                        "tokens": len(encoded.batch["input_ids"].flatten()),
                        "untrained rows": len(encoded.untrained),
                        "rows with typed tokens": len(encoded.typed),
                    }
                )
        facts = {
            "source": source.name,
            **total,
            "bad rows": len(bad),
            "first bad": bad[:MAX_BAD_ROWS_SHOWN],
            "first untrained": untrained,
            "first with typed tokens": typed,
        }
        (aside / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
        aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    made = f"{total['samples']:,} samples, {total['tokens']:,} tokens in {time.monotonic() - started:.1f} s"
    say(f"tokenised {source.name}: {total['rows']:,} rows -> {made}")


def _read_facts(directory: Path, name: str) -> dict[str, Any]:
    """The facts of a cache; its rows go by the name that the file has now, which may be renamed or a copy."""
    try:
        facts = json.loads((directory / "facts.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"the token cache {directory} is damaged (facts.json: {error}); delete it and start again."
        ) from error
    then = facts["source"]
    return {
        key: [_renamed(row, then, name) for row in fact] if isinstance(fact, list) else fact
        for key, fact in facts.items()
    }


def _renamed(row: str, then: str, name: str) -> str:
    return name + row.removeprefix(then) if row.startswith(then) else row


def _remarks(facts: Mapping[str, Any]) -> Iterator[str]:
    """What else than one sample per row became of the rows; said at every start, not only where it is tokenised."""
    if rows := facts["bad rows"]:
        first = "\n  ".join(["first:", *facts["first bad"]])
        yield f"data.bad_rows=drop leaves out {rows:,} of {facts['rows']:,} rows; {first}"
    if rows := facts["untrained rows"]:
        yield f"{rows:,} of {facts['rows']:,} rows left out: nothing in them is trained (blank, data.train_on, weights)"
    if rows := facts.get("unrolled rows"):
        share = 100 * facts["repeated tokens"] / facts["tokens"]
        yield (
            f"unrolled {rows:,} rows into {facts['unrolled samples']:,} samples, since the chat template rewrites "
            f"earlier turns; {share:.0f} % of the tokens are repeated prefixes (data.thinking_history)"
        )
    if turns := facts.get("turns left out"):
        yield f"{turns:,} turns are not trained: data.thinking_history=last, and the chat template rewrites them"
    if thoughts := facts.get("thoughts left out"):
        yield f"{thoughts:,} thoughts are not trained: data.train_on=all, and the chat template drops them from history"


def _with_progress(source: RowSource, max_rows: int | None) -> Iterator[list[Row]]:
    """The rows in lists of ROWS_AT_ONCE; a progress bar where a person is watching."""
    rows: Iterable = itertools.islice(source.read(), max_rows)
    total = source.count() if max_rows is None else min(source.count(), max_rows)
    console = Console(stderr=True)
    watched = iter(
        track(
            rows, f"tokenising {source.name}", total, console=console, transient=True, disable=not console.is_terminal
        )
    )
    return iter(lambda: list(itertools.islice(watched, ROWS_AT_ONCE)), [])


def _listed(problems: Sequence[str], num_rows: int) -> str:
    shown = "\n  ".join(dict.fromkeys(problems[:MAX_BAD_ROWS_SHOWN]))
    more = f"\n  and {len(problems) - MAX_BAD_ROWS_SHOWN} more" if len(problems) > MAX_BAD_ROWS_SHOWN else ""
    return (
        f"{len(problems)} of {num_rows} rows cannot be used:\n  {shown}{more}\n"
        "Mend them, or set data.bad_rows=drop to leave such rows out."
    )
