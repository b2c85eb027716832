"""Files in, batches out.

    files --source--> rows --formats--> messages --chat--> Samples with proven masks --cache--> memory-mapped
    memory-mapped --fit--> what trains
    (seed, epoch, mixture) --mixture--> order --plan--> sample ids of a step --collate--> Batch

`encode` is the public function that shows, for one conversation, what would be trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft.config import DataConfig
from sft.data import plan
from sft.data.cache import CachedRows, cached
from sft.data.chat import Supervision, encode, stop_token_ids, template_fingerprint
from sft.data.collate import collate
from sft.data.dataset import Dataset
from sft.data.fit import FittedSamples, fit
from sft.data.mixture import Mixture, Source, epoch_order, refuse_empty
from sft.data.parts import Part, parts_of_files, parts_of_mixture
from sft.data.prefetch import prefetch
from sft.data.rows import with_difficulty
from sft.data.shipped import add_missing_tokens, find_template
from sft.data.store import SampleStore
from sft.data.tokenise import Recipe
from sft.data.variables import remarks
from sft.errors import InputError

__all__ = [
    "Dataset",
    "Supervision",
    "add_missing_tokens",
    "collate",
    "encode",
    "epoch_order",
    "find_template",
    "open_dataset",
    "plan",
    "prefetch",
    "remarks",
    "stop_token_ids",
    "template_fingerprint",
    "tokenise_files",
]

BY_LENGTH = "length"
"""The data.curriculum that goes by tokens, not by a column."""


def open_dataset(
    config: DataConfig,
    files: tuple[str, ...] | None,
    *,
    max_samples: int,
    max_tokens: int | None,
    packed: bool,
    tokenizer: Any,
    build_here: bool,
    say: Callable[[str], None],
    curriculum: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Tokenise (or find tokenised) the files and fit the samples to data.max_length.

    files:       None: the sources of data.mixture
    max_samples: rows to read, from the first file on; -1 reads all
    max_tokens:  tokens of a micro-batch; None: data.micro_batch_size_per_gpu samples
    curriculum:  "length", or the column by which the first data.curriculum_epochs are sorted; None: all are shuffled
    seed:        of the rows that a source of data.mixture draws

    Every rank calls it, outside of any collective; build_here on one process per node. Raises InputError naming
    file:row for rows that cannot be used.
    """
    by_column = _column_of(curriculum)
    parts = _parts(config, files, tokenizer, say, by_column, seed)
    recipe = _recipe(config, tokenizer)
    if recipe.has_today():
        say(
            "the chat template writes the date (strftime_now): rows keep that of the day they were tokenised on, until "
            "data.cache_dir is deleted. Templates that have a variable for it take yours: "
            "data.apply_chat_template_kwargs.date_string (Llama)"
        )
    cached_rows = _cached(parts, config, recipe, by_column, max_samples, build_here, say)
    for rows in (rows for of_part in cached_rows for rows in of_part):
        for remark in rows.remarks():
            say(remark)
    files_of_part = [len(of_part) for of_part in cached_rows]
    flat = [rows for of_part in cached_rows for rows in of_part]
    samples, report = fit(SampleStore(flat), max_length=config.max_length, truncation=config.truncation)
    names = ", ".join(rows.name for rows in flat)
    if not len(samples):
        raise InputError(f"{names}: no sample is left ({report}); check the rows, data.train_on and data.max_length.")
    sources = _sources(parts, samples.file_starts[np.cumsum([0, *files_of_part])])
    identity = [*(rows.key for rows in flat), config.max_length, config.truncation]
    if files is None:
        refuse_empty(sources)
        identity.append([(source.samples, source.weight, source.fraction) for source in sources])
    if curriculum is not None:
        identity.append([curriculum, config.curriculum_epochs])
    return Dataset(
        samples=samples,
        files=tuple(flat),
        fitting=report,
        mixture=Mixture(
            sources=tuple(source for source in sources if source.samples),  # data.train_max_samples may leave none
            difficulty=_difficulty(samples, curriculum),
            curriculum_epochs=config.curriculum_epochs,
        ),
        fingerprint=hashlib.sha256(repr(identity).encode()).hexdigest()[:32],
        micro_batch_size=config.micro_batch_size_per_gpu,
        max_tokens=max_tokens,
        balanced=config.balance_dp_token,
        packed=packed,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )


def tokenise_files(
    config: DataConfig,
    files: tuple[str, ...] | None,
    *,
    max_samples: int,
    tokenizer: Any,
    say: Callable[[str], None],
    curriculum: str | None = None,
    seed: int = 0,
) -> None:
    """Fill the token cache with all that open_dataset will look for; arguments and errors are as there.

    say: hears of what was tokenised, and of nothing that open_dataset says
    """
    by_column = _column_of(curriculum)
    parts = _parts(config, files, tokenizer, lambda line: None, by_column, seed)
    _cached(parts, config, _recipe(config, tokenizer), by_column, max_samples, build_here=True, say=say)


def _column_of(curriculum: str | None) -> str | None:
    return curriculum if curriculum != BY_LENGTH else None


def _recipe(config: DataConfig, tokenizer: Any) -> Recipe:
    return Recipe(tokenizer, config.apply_chat_template_kwargs, Supervision(config.train_on, config.thinking_history))


def _parts(
    config: DataConfig,
    files: tuple[str, ...] | None,
    tokenizer: Any,
    say: Callable[[str], None],
    by_column: str | None,
    seed: int,
) -> list[Part]:
    if files is None:
        return parts_of_mixture(config, seed, tokenizer, say, sorted_by=by_column)
    return parts_of_files(config, files, tokenizer, say, sorted_by=by_column)


def _cached(
    parts: Sequence[Part],
    config: DataConfig,
    recipe: Recipe,
    by_column: str | None,
    max_samples: int,
    build_here: bool,
    say: Callable[[str], None],
) -> list[list[CachedRows]]:
    """The tokens of every file of every part, up to the last one that max_samples lets in."""
    insist = config.bad_rows == "error"  # else rows without the column are left out, one by one
    rows_left = None if max_samples < 0 else max_samples
    cached_rows: list[list[CachedRows]] = [[] for _ in parts]
    for part, of_part in zip(parts, cached_rows, strict=True):
        for source in part.sources:
            if rows_left == 0:
                break
            rows = cached(
                source if by_column is None else with_difficulty(source, by_column, insist=insist),
                recipe,
                max_rows=rows_left,
                bad_rows=config.bad_rows,
                cache_dir=Path(config.cache_dir),
                build_here=build_here,
                say=say,
                num_workers=config.num_workers,
            )
            of_part.append(rows)
            rows_left = None if rows_left is None else rows_left - rows.rows
    return cached_rows


def _sources(parts: Sequence[Part], starts: np.ndarray) -> list[Source]:
    """The parts as sources of samples; starts: the first sample of each, int64 [parts + 1]."""
    return [
        Source(part.name, int(samples), part.weight, part.fraction)
        for part, samples in zip(parts, np.diff(starts), strict=True)
    ]


def _difficulty(samples: FittedSamples, curriculum: str | None) -> np.ndarray | None:
    if curriculum is None:
        return None
    return samples.lengths.astype(np.float64) if curriculum == BY_LENGTH else samples.difficulty()
