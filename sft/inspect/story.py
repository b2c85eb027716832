"""Tell what a configuration would train, in order: samples, numbers, tokenizer, plan, memory."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sft.config import SftConfig
from sft.config.secrets import presentable
from sft.data.audit import Audit, audit, overlap, summary
from sft.data.chat.encode import stop_token_ids
from sft.data.chat.tokenizer import template_fingerprint
from sft.data.dataset import Dataset
from sft.errors import InputError
from sft.inspect.fit import fit_of
from sft.inspect.lines import write_lines
from sft.inspect.options import Options
from sft.inspect.page import write_page
from sft.inspect.show import audit_lines, histogram_lines, show_sample
from sft.inspect.tokens import SeenSample, see
from sft.model.attention import Available
from sft.model.place import build_bare_model
from sft.model.pretrained import find_model
from sft.parallel.world import World, log_on_main_rank_only
from sft.train.forecast import sentence
from sft.train.forecast_memory import footprint, look_ahead
from sft.train.inputs import attention_of, check_sharing_of_rows
from sft.train.reading import open_data, open_tokenizer, supervision_of


class DataError(InputError):
    """The rows are to blame: this data cannot train."""


def tell(config: SftConfig, options: Options) -> None:
    """Show samples and numbers on stdout, and write the files that were asked for.

    Raises DataError for rows that cannot train, InputError for anything else that the trainer would refuse.
    """
    ranks = options.ranks or config.ulysses_sequence_parallel_size * config.model.fsdp_config.dp_replicate
    log_on_main_rank_only(World(rank=0, size=ranks, local_rank=0))
    if config.model.external_lib:
        importlib.import_module(config.model.external_lib)
    source = find_model(config.model.partial_pretrain, config.model.revision, weights=False)
    check_sharing_of_rows(config, source, ranks=ranks)
    tokenizer, own_template, new_tokens = open_tokenizer(config, source)
    try:
        train, val = open_data(config, tokenizer, World(rank=0, size=ranks, local_rank=0), options.sample_rows)
    except InputError as error:
        raise DataError(str(error)) from error
    stops = stop_token_ids(tokenizer, supervision_of(config), **config.data.apply_chat_template_kwargs)

    console = Console(highlight=False, markup=False, emoji=False, file=sys.stdout)
    chosen = choose(train, options)
    for number in chosen[: options.samples if options.row is None else None]:
        show_sample(console, see(train.samples, number, tokenizer), of=len(train), ids=options.ids)

    numbers = audit(train, stops)
    lines = []  # of the page, which draws the histograms

    def say(told: Iterable[str], *, on_page: bool = True) -> None:
        for line in map(presentable, told):
            console.print(line, soft_wrap=True)
            lines.extend([line] * on_page)

    say(audit_lines(numbers, "train"))
    say(histogram_lines(numbers, "train", config.data.max_length), on_page=False)
    if val is not None:
        say(val_lines(train, val, stops))
    say(tokenizer_lines(config, tokenizer, stops, is_own=own_template is None))
    view = look_ahead(config, train, ranks)
    say([f"plan: {sentence(view, train, config.data.train_batch_size)}"])
    attention = attention_of(config, source, Available("cpu"), wanted="auto")  # the run's own device may be elsewhere
    tokens = max(new_tokens.values(), default=-1) + 1
    model, _ = build_bare_model(config, source, attention, tokens=tokens)
    memory = footprint(config, model, train, ranks, supervised_tokens=numbers.supervised_tokens)
    say(memory.table().splitlines())
    if options.fit:
        counted = numbers.supervised_tokens
        say(fit_of(config, source, train, attention, tokens=tokens, supervised_tokens=counted).lines())
    write_files(options, train, chosen, tokenizer, lines, numbers)


def choose(train: Dataset, options: Options) -> list[int]:
    """Choose the samples to show: their numbers, in order. Raises InputError for a row that has none."""
    if options.row is not None:
        found = [number for number in range(len(train)) if train.samples.where(number) == options.row]
        if not found:
            raise InputError(
                f"inspect.row={options.row}: no sample of the training data comes from that row; rows are named like "
                f"{train.samples.where(0)}, and one that was dropped has no sample."
            )
        return found
    if options.seed is None:
        return list(range(len(train)))
    return np.random.default_rng(options.seed).permutation(len(train)).tolist()


def val_lines(train: Dataset, val: Dataset, stops: list[int]) -> Iterator[str]:
    """Summarise the validation data, and how much of it is in the training data too."""
    yield from summary(audit(val, stops), "val")
    yield f"val: samples that are in the training data too: {overlap(val, train)}"


def tokenizer_lines(config: SftConfig, tokenizer: Any, stops: list[int], *, is_own: bool) -> Iterator[str]:
    """Say which template and tokenizer made the tokens."""
    given = config.data.chat_template
    origin = "the tokenizer's own" if is_own else "chatml (the tokenizer has none)" if given is None else "given"
    if given is not None and "{" not in given:
        origin = f"data.chat_template={given}"
    fingerprint = template_fingerprint(tokenizer, config.data.apply_chat_template_kwargs)
    names = ", ".join(f"{tokenizer.convert_ids_to_tokens(stop)} = {stop}" for stop in stops)
    yield f"template: {origin}, {fingerprint[:12]}; a turn ends with {names}"
    special = sum(token.special for token in tokenizer.added_tokens_decoder.values())
    ends = ", ".join(f"{name} {getattr(tokenizer, f'{name}_token') or 'none'}" for name in ("bos", "eos", "pad"))
    yield f"tokenizer: {type(tokenizer).__name__}, {len(tokenizer):,} tokens, {special} special; {ends}"


def write_files(
    options: Options, train: Dataset, chosen: list[int], tokenizer: Any, lines: list[str], numbers: Audit
) -> None:
    """Write the files of +inspect.out and +inspect.html."""
    written = chosen[: None if options.written < 0 else options.written]

    def seen() -> Iterator[SeenSample]:
        return (see(train.samples, number, tokenizer) for number in written)

    try:
        if options.out:
            count = write_lines(Path(options.out), seen())
            print(presentable(f"{options.out}: {count:,} of {len(train):,} samples as JSONL"))
        if options.html:
            drawn = {
                "samples by length in tokens": numbers.lengths,
                "samples by trained tokens": numbers.supervised_tokens,
            }
            names = ", ".join(source.name for source in itertools.islice(train.files, 5))
            write_page(Path(options.html), seen(), title=f"What trains in {names}", numbers=lines, histograms=drawn)
            print(presentable(f"{options.html}: {len(written):,} of {len(train):,} samples as a page"))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written ({error.strerror}); give another path.") from error
