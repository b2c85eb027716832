"""Open the files of a configuration as a Dataset: samples that fit max_length, and the batches of any step."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sft.config import DataConfig
from sft.data.cache.cache import CachedRows, cached
from sft.data.cache.store import SampleStore
from sft.data.cache.tokenise import Recipe
from sft.data.order import plan
from sft.data.order.collate import collate
from sft.data.order.fit import FitReport, FittedSamples, fit
from sft.data.order.held_out import held_out
from sft.data.order.mixture import Mixture, Source, describe, refuse_empty
from sft.data.rows.entries import Part, parts_of_files, parts_of_mixture
from sft.data.rows.source import draw, with_difficulty
from sft.data.types import Supervision
from sft.errors import InputError
from sft.types import Batch

BY_LENGTH = "length"
"""The data.curriculum that goes by tokens, not by a column."""


@dataclass(frozen=True)
class Dataset:
    """Tokenised samples that fit max_length, and the recipe that turns them into batches."""

    samples: FittedSamples
    files: tuple[CachedRows, ...]  # where the samples come from
    fitting: FitReport
    mixture: Mixture  # their sources, an entry of data.train_files each, and what an epoch holds of them
    fingerprint: str  # of the rows, tokenizer, template, columns, truncation and mixture: equal means equal epochs
    tokens: str  # of the samples and their mixture alone: equal means equal epochs, however they were made
    micro_batch_size: int
    max_tokens: int | None  # of a micro-batch; replaces micro_batch_size
    balanced: bool
    packed: bool
    pad_id: int

    def __len__(self) -> int:
        return len(self.samples)

    def describe_epoch(self) -> str:
        """Return what an epoch holds, a line for each source."""
        return describe(self.mixture, self.samples.lengths)

    def batches(
        self, sample_ids: np.ndarray, *, dp_size: int, dp_rank: int, noise: tuple[int, ...] | None = None
    ) -> Iterator[Batch]:
        """Return the micro-batches in which one data-parallel rank computes its part of `sample_ids`.

        noise: what the noise of its samples is drawn from, such as the seed of the run and the step; None: no noise
        """
        for ids in self.micro_batches(sample_ids, dp_size=dp_size, dp_rank=dp_rank):
            sources = self.mixture.source_of(ids) if len(self.mixture.sources) > 1 else None
            yield collate(
                [self.samples[i] for i in ids],
                packed=self.packed,
                pad_id=self.pad_id,
                sources=sources,
                draws=None if noise is None else [_drawn(*noise, int(i)) for i in ids],
            )

    def weight_sums(self, sample_ids: np.ndarray) -> list[float]:
        """Return Σ loss_weights of the tokens predicted in `sample_ids`, of each source, whichever ranks compute."""
        weights = [self.samples[i].target_weights.sum(dtype=np.float64) for i in sample_ids]
        sources = self.mixture.source_of(sample_ids)
        return np.bincount(sources, weights=weights, minlength=len(self.mixture.sources)).tolist()

    def supervised_tokens(self, sample_id: int) -> int:
        """How many tokens of a sample carry loss."""
        return int((self.samples[sample_id].target_weights > 0).sum())

    def micro_batches(self, sample_ids: np.ndarray, *, dp_size: int, dp_rank: int) -> list[np.ndarray]:
        """Return the sample ids of these micro-batches."""
        return plan.micro_batches(
            sample_ids,
            self.samples.lengths[sample_ids],
            dp_size=dp_size,
            dp_rank=dp_rank,
            micro_batch_size=self.micro_batch_size,
            max_tokens=self.max_tokens,
            balanced=self.balanced,
            packed=self.packed,
        )


def _drawn(*of: int) -> int:
    """Draw 32 bits, the same ones from the same numbers."""
    return int(np.random.SeedSequence(of).generate_state(1)[0])


@dataclass(frozen=True)
class Wanted:
    """Which rows of a configuration are opened.

    files:       None: the sources of data.mixture
    max_samples: rows to read, from the first file on; -1 reads all
    curriculum:  "length", or the column by which the first data.curriculum_epochs are sorted; None: all are shuffled
    seed:        of the rows that a source of data.mixture draws
    """

    files: tuple[str, ...] | None
    max_samples: int = -1
    curriculum: str | None = None
    seed: int = 0

    @property
    def column(self) -> str | None:
        """Return the column that rows are sorted by, if any."""
        return self.curriculum if self.curriculum != BY_LENGTH else None

    def parts(self, config: DataConfig, tokenizer: Any, say: Callable[[str], None]) -> list[Part]:
        """Return the rows of every entry of `files`, or of every source of the mixture."""
        if self.files is None:
            return parts_of_mixture(config, self.seed, tokenizer, say, sorted_by=self.column)
        return parts_of_files(config, self.files, tokenizer, say, sorted_by=self.column)


def open_dataset(
    config: DataConfig,
    wanted: Wanted,
    *,
    max_tokens: int | None,
    packed: bool,
    tokenizer: Any,
    build_here: bool,
    say: Callable[[str], None],
    is_val: bool = False,
    sample_rows: int | None = None,
) -> Dataset:
    """Tokenise (or find tokenised) the files and fit the samples to data.max_length.

    max_tokens:  tokens of a micro-batch; None: data.micro_batch_size_per_gpu samples
    sample_rows: so many rows alone, drawn from all files by seed; None: all of them
    is_val:      of files that data.val_fraction divides, the rows for validation; else those for training

    Every rank calls it, outside of any collective; build_here on one process per node. Raises InputError naming
    file:row for rows that cannot be used.
    """
    parts, files, curriculum = wanted.parts(config, tokenizer, say), wanted.files, wanted.curriculum
    if sample_rows is not None:
        parts = _with_fewer_rows(parts, sample_rows, wanted.seed, say)
    recipe = _recipe(config, tokenizer)
    if recipe.has_today():
        say(
            "the chat template writes the date (strftime_now): rows keep that of the day they were tokenised on, until "
            "data.cache_dir is deleted. Templates that have a variable for it take yours: "
            "data.apply_chat_template_kwargs.date_string (Llama)"
        )
    cached_rows = _cached(parts, config, recipe, wanted, build_here, say)
    for rows in (rows for of_part in cached_rows for rows in of_part):
        for remark in rows.remarks():
            say(remark)
    files_of_part = [len(of_part) for of_part in cached_rows]
    flat = [rows for of_part in cached_rows for rows in of_part]
    store, names = SampleStore(flat), ", ".join(rows.name for rows in flat)
    of_this_part = None
    if divided := config.val_fraction and files == config.train_files:
        entry_starts = store.file_starts[np.cumsum([0, *files_of_part])]
        held = held_out(store, entry_starts, config.val_fraction)
        if not is_val:
            say(
                f"data.val_fraction={config.val_fraction:g} holds out {int(held.sum()):,} of {len(held):,} samples, by "
                "what their rows say; none of them is trained"
            )
        of_this_part = held if is_val else ~held
    samples, report = fit(store, max_length=config.max_length, truncation=config.truncation, wanted=of_this_part)
    if not len(samples):
        part = f" for {'validation' if is_val else 'training'} by data.val_fraction={config.val_fraction:g}"
        raise InputError(
            f"{names}: no sample is left{part if divided else ''} ({report}); check the rows, data.train_on and "
            "data.max_length."
        )
    sources = _sources(parts, samples.file_starts[np.cumsum([0, *files_of_part])])
    of_tokens: list[Any] = [samples.fingerprint()]
    identity = [*(rows.key for rows in flat), config.max_length, config.truncation]
    if divided:
        identity.append(["val_fraction", config.val_fraction, is_val])
    if is_val:
        sources = [Source(source.name, source.samples) for source in sources]
        curriculum = None  # it decided what was read
    elif files is None:
        refuse_empty(sources)
        shares = [(source.samples, source.weight, source.fraction) for source in sources]
        identity.append(shares)
        of_tokens.append(shares)
    if curriculum is not None:
        identity.append([curriculum, config.curriculum_epochs])
        of_tokens.append([curriculum, config.curriculum_epochs])
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
        tokens=hashlib.sha256(repr(of_tokens).encode()).hexdigest()[:32],
        micro_batch_size=config.micro_batch_size_per_gpu,
        max_tokens=max_tokens,
        balanced=config.balance_dp_token,
        packed=packed,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )


def tokenise_files(
    config: DataConfig, wanted: Wanted, tokenizer: Any, say: Callable[[str], None], share: tuple[int, int] = (1, 1)
) -> int:
    """Fill the token cache with all that open_dataset will look for; arguments and errors are as there.

    say:   hears of what was tokenised, and of nothing that open_dataset says
    share: (3, 16): only the third of sixteen shares of the files; needs max_samples=-1

    Returns how many files are in the cache now, of this share.
    """
    if share[1] > 1 and wanted.max_samples >= 0:
        raise InputError(
            f"part={share[0]}/{share[1]} divides the files, and max_samples={wanted.max_samples} cuts the rows of the "
            "first ones; leave one of them out."
        )
    parts = _share_of(wanted.parts(config, tokenizer, lambda line: None), *share)
    return sum(map(len, _cached(parts, config, _recipe(config, tokenizer), wanted, build_here=True, say=say)))


def _with_fewer_rows(parts: Sequence[Part], number: int, seed: int, say: Callable[[str], None]) -> list[Part]:
    """Return the parts with about `number` of their rows in all, of each part as many as it has a share of them."""
    counts = [sum(source.count() for source in part.sources) for part in parts]
    total = sum(counts)
    if number >= total:
        return list(parts)
    wanted = [min(count, max(1, round(number * count / total))) for count in counts]
    say(f"{sum(wanted):,} of {total:,} rows are drawn: all numbers are of these rows alone")
    return [
        replace(part, sources=draw(part.sources, rows, seed=seed, name=part.name)) if rows else part
        for part, rows in zip(parts, wanted, strict=True)
    ]


def _share_of(parts: Sequence[Part], number: int, of: int) -> list[Part]:
    """Return the parts with every `of`-th of their files, counted over all parts."""
    count = itertools.count()
    return [
        replace(part, sources=[source for source in part.sources if next(count) % of == number - 1]) for part in parts
    ]


def _recipe(config: DataConfig, tokenizer: Any) -> Recipe:
    return Recipe(tokenizer, config.apply_chat_template_kwargs, Supervision(config.train_on, config.thinking_history))


def _cached(
    parts: Sequence[Part],
    config: DataConfig,
    recipe: Recipe,
    wanted: Wanted,
    build_here: bool,
    say: Callable[[str], None],
) -> list[list[CachedRows]]:
    """Return the tokens of every file of every part, up to the last one that max_samples lets in."""
    insist = config.bad_rows == "error"  # else rows without the column are left out, one by one
    rows_left = None if wanted.max_samples < 0 else wanted.max_samples
    cached_rows: list[list[CachedRows]] = [[] for _ in parts]
    for part, of_part in zip(parts, cached_rows, strict=True):
        for source in part.sources:
            if rows_left == 0:
                break
            rows = cached(
                source if wanted.column is None else with_difficulty(source, wanted.column, insist=insist),
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
    """Return the parts as sources of samples; starts: the first sample of each, int64 [parts + 1]."""
    return [
        Source(part.name, int(samples), part.weight, part.fraction)
        for part, samples in zip(parts, np.diff(starts), strict=True)
    ]


def _difficulty(samples: FittedSamples, curriculum: str | None) -> np.ndarray | None:
    if curriculum is None:
        return None
    return samples.lengths.astype(np.float64) if curriculum == BY_LENGTH else samples.difficulty()
