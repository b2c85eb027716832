"""Files in, batches out.

    files --source--> rows --formats--> messages --chat--> Samples with proven masks --cache--> memory-mapped
    memory-mapped --fit--> what trains
    (seed, epoch, step) --plan--> sample ids --collate--> Batch

`encode` is the public function that shows, for one conversation, what would be trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft.config import DataConfig
from sft.data import plan
from sft.data.cache import CachedRows, cached
from sft.data.chat import Supervision, encode, stop_token_ids, template_fingerprint
from sft.data.collate import collate
from sft.data.custom import rows_of_class
from sft.data.fit import FitReport, FittedSamples, fit
from sft.data.formats import Columns
from sft.data.prefetch import prefetch
from sft.data.rows import RowSource, differences, rows_of_file
from sft.data.shipped import add_missing_tokens, find_template
from sft.data.source import expand_files
from sft.data.store import SampleStore
from sft.data.tokenise import Recipe
from sft.errors import InputError
from sft.types import Batch

__all__ = [
    "Dataset",
    "Supervision",
    "add_missing_tokens",
    "collate",
    "encode",
    "find_template",
    "open_dataset",
    "plan",
    "prefetch",
    "stop_token_ids",
    "template_fingerprint",
]


@dataclass(frozen=True)
class Dataset:
    """Tokenised samples that fit max_length, and the recipe that turns them into batches."""

    samples: FittedSamples
    sources: tuple[CachedRows, ...]  # where the samples come from
    fitting: FitReport
    fingerprint: str  # of the rows, tokenizer, template, columns and truncation: equal means equal samples
    micro_batch_size: int
    max_tokens: int | None  # of a micro-batch; replaces micro_batch_size
    balanced: bool
    packed: bool
    pad_id: int

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, sample_ids: np.ndarray, *, dp_size: int, dp_rank: int) -> Iterator[Batch]:
        """The micro-batches in which one data-parallel rank computes its part of `sample_ids`."""
        for ids in self.micro_batches(sample_ids, dp_size=dp_size, dp_rank=dp_rank):
            yield collate([self.samples[i] for i in ids], packed=self.packed, pad_id=self.pad_id)

    def micro_batches(self, sample_ids: np.ndarray, *, dp_size: int, dp_rank: int) -> list[np.ndarray]:
        """The sample ids of these micro-batches."""
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


def open_dataset(
    config: DataConfig,
    files: tuple[str, ...],
    *,
    max_samples: int,
    max_tokens: int | None,
    packed: bool,
    tokenizer: Any,
    build_here: bool,
    say: Callable[[str], None],
) -> Dataset:
    """Tokenise (or find tokenised) the files and fit the samples to data.max_length.

    max_samples: rows to read, from the first file on; -1 reads all
    max_tokens:  tokens of a micro-batch; None: data.micro_batch_size_per_gpu samples

    Every rank calls it, outside of any collective; build_here on one process per node. Raises InputError naming
    file:row for rows that cannot be used.
    """
    sources = open_sources(config, files, tokenizer, say)
    supervision = Supervision(config.train_on, config.thinking_history)
    recipe = Recipe(tokenizer, config.apply_chat_template_kwargs, supervision)
    cached_rows: list[CachedRows] = []
    for source in sources:
        rows_left = None if max_samples < 0 else max_samples - sum(rows.rows for rows in cached_rows)
        if rows_left == 0:
            break
        cached_rows.append(
            cached(
                source,
                recipe,
                max_rows=rows_left,
                bad_rows=config.bad_rows,
                cache_dir=Path(config.cache_dir),
                build_here=build_here,
                say=say,
            )
        )
    store = SampleStore(cached_rows)
    samples, report = fit(store, max_length=config.max_length, truncation=config.truncation)
    names = ", ".join(rows.name for rows in cached_rows)
    if not len(samples):
        raise InputError(f"{names}: no sample is left ({report}); check the rows, data.train_on and data.max_length.")
    identity = [*(rows.key for rows in cached_rows), config.max_length, config.truncation]
    return Dataset(
        samples=samples,
        sources=tuple(cached_rows),
        fitting=report,
        fingerprint=hashlib.sha256(repr(identity).encode()).hexdigest()[:32],
        micro_batch_size=config.micro_batch_size_per_gpu,
        max_tokens=max_tokens,
        balanced=config.balance_dp_token,
        packed=packed,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )


def open_sources(
    config: DataConfig, files: tuple[str, ...], tokenizer: Any, say: Callable[[str], None]
) -> list[RowSource]:
    """The rows of every file, each in its own format; or, of them all, those that data.custom_cls makes."""
    columns = Columns(
        format=config.format,
        prompt_key=config.prompt_key,
        response_key=config.response_key,
        prompt_dict_keys=tuple(config.prompt_dict_keys or ()),
        response_dict_keys=tuple(config.response_dict_keys or ()),
        multiturn=config.multiturn.enable,
        messages_key=config.multiturn.messages_key,
        tools_key=config.multiturn.tools_key,
        enable_thinking_key=config.multiturn.enable_thinking_key,
        text_key=config.text_key,
    )
    if config.custom_cls.path is not None:
        return [rows_of_class(files, columns, tokenizer, config, say)]
    options, max_length = config.apply_chat_template_kwargs, config.max_length
    sources = [
        rows_of_file(path, columns, options, max_length=max_length, say=say) for path in expand_files(files, say)
    ]
    for line in differences(sources):
        say(line)
    return sources
