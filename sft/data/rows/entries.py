"""The parts of a data set: what each entry of data.train_files, data.val_files or data.mixture brings in."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from sft.config import DataConfig
from sft.data.chat.variables import message_keys, variables
from sft.data.rows.cells import few
from sft.data.rows.custom import rows_of_class
from sft.data.rows.files import expand_files, names_of
from sft.data.rows.formats import Columns
from sft.data.rows.source import RowSource, differences, draw, rows_of_file
from sft.errors import InputError

DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".arrow", ".feather", ".gz", ".zst")


@dataclass(frozen=True)
class Part:
    """The rows of one entry, and how often they are seen (mixture.Source)."""

    name: str
    sources: list[RowSource]
    weight: float = 1.0
    fraction: float | None = None


def parts_of_files(
    config: DataConfig,
    files: tuple[str, ...],
    tokenizer: Any,
    say: Callable[[str], None],
    *,
    sorted_by: str | None = None,
) -> list[Part]:
    """Return the rows of every entry of data.train_files, each file in its own format; or those of data.custom_cls.

    sorted_by: the column that data.curriculum will ask for, if any
    """
    columns = columns_of(config)
    if config.custom_cls.path is not None:
        source = rows_of_class(files, columns, tokenizer, config, say)
        return [Part(source.name, [source])]
    paths = _expand(files, config, say)
    open_files = partial(_open, config, tokenizer=tokenizer, say=say, sorted_by=sorted_by)
    parts = [Part(name, open_files(part, columns)) for name, part in zip(short_names(files), paths, strict=True)]
    sources = [source for part in parts for source in part.sources]
    _refuse_absent(columns, sources, say)
    for line in differences(sources):
        say(line)
    return parts


def parts_of_mixture(
    config: DataConfig, seed: int, tokenizer: Any, say: Callable[[str], None], *, sorted_by: str | None = None
) -> list[Part]:
    """Return the rows of every source of data.mixture; `seed` draws them where the source has none of its own."""
    assert config.mixture is not None, "the config door let null pass for data.train_files"
    columns, parts, opened = columns_of(config), [], list[RowSource]()
    from_paths = short_names([source.path for source in config.mixture])
    names = unique(source.name or name for source, name in zip(config.mixture, from_paths, strict=True))
    paths = _expand([source.path for source in config.mixture], config, say)
    open_files = partial(_open, config, tokenizer=tokenizer, say=say, sorted_by=sorted_by)
    for name, source, part in zip(names, config.mixture, paths, strict=True):
        form = source.format or config.format
        turns = columns.multiturn and form in ("auto", "messages", "sharegpt")  # chats beside plain text
        rows = open_files(part, replace(columns, format=form, multiturn=turns))
        opened += rows
        for line in differences(rows):
            say(line)
        if source.rows is not None:
            own_seed = seed if source.seed is None else source.seed
            rows = draw(rows, source.rows, seed=own_seed, name=source.path)
        parts.append(Part(name, rows, source.weight, source.fraction))
    _refuse_absent(columns, opened, say)
    return parts


def columns_of(config: DataConfig) -> Columns:
    """Return where rows keep what, as data.* says it: data.columns over the older keys."""
    columns = config.columns
    keys = {"reasoning": "reasoning_content"}
    return Columns(
        format=config.format,
        prompt_key=columns.prompt or config.prompt_key,
        response_key=columns.response or config.response_key,
        prompt_dict_keys=tuple(config.prompt_dict_keys or ()),
        response_dict_keys=tuple(config.response_dict_keys or ()),
        multiturn=config.multiturn.enable,
        messages_key=columns.messages or config.multiturn.messages_key,
        tools_key=columns.tools or config.multiturn.tools_key,
        enable_thinking_key=columns.enable_thinking or config.multiturn.enable_thinking_key,
        text_key=columns.text or config.text_key,
        system_key=columns.system,
        history_key=columns.history,
        context_key=columns.context,
        reasoning_key=columns.reasoning,
        weight_key=columns.weight,
        ignored=config.ignore_columns,
        ignored_message_keys=config.ignore_message_keys,
        roles=tuple((theirs, ours) for ours, names in asdict(config.roles).items() for theirs in names),
        message_keys=tuple(
            (keys.get(ours, ours), theirs) for ours, theirs in asdict(config.message_keys).items() if theirs
        ),
    )


def _refuse_absent(columns: Columns, sources: Sequence[RowSource], say: Callable[[str], None]) -> None:
    """Raise InputError for a column that the user named and that no row of any file has. One that is to be ignored may
    be absent: that is said.
    """
    seen = frozenset().union(*(source.columns_found for source in sources))
    if absent := [name for name in columns.ignored if name not in seen]:
        say(f"data.ignore_columns: the first rows of no file have {', '.join(absent)}; found {few(seen)}")
    for knob, column in columns.named_columns():
        if any(column in source.columns_found for source in sources):
            continue
        if not any(column in cells for source in sources for _, cells in source.read()):
            found = {name for source in sources for name in source.columns_found}
            close = get_close_matches(column, sorted(found), n=1)
            raise InputError(
                f"{knob}={column} names a column that no row of {', '.join(source.name for source in sources[:3])} "
                f"has; {f'did you mean {close[0]}? ' if close else ''}found {few(found)}."
            )


def _expand(entries: Sequence[str], config: DataConfig, say: Callable[[str], None]) -> list[dict[Path, str]]:
    """Return the files of each entry, with what messages call them."""
    copies = Path(config.cache_dir) / "copies"
    paths = [expand_files([entry], say, copies=copies) for entry in entries]
    names = names_of(path for of_entry in paths for path in of_entry)
    if line := _read_twice(entries, paths):
        say(line)
    return [{path: names[path] for path in of_entry} for of_entry in paths]


def _read_twice(entries: Sequence[str], paths: Sequence[Sequence[Path]]) -> str | None:
    """Return the line about files that more than one entry leads to: repeated data may be meant, or not."""
    entries_of: dict[Path, list[str]] = {}
    for entry, of_entry in zip(entries, paths, strict=True):
        for file in dict.fromkeys(path.resolve() for path in of_entry):
            entries_of.setdefault(file, []).append(entry)
    shared = [(file, among) for file, among in entries_of.items() if len(among) > 1]
    if not shared:
        return None
    file, among = shared[0]
    more = f" (and {len(shared) - 1:,} more files)" if len(shared) > 1 else ""
    return f"{file.name}{more} is read {len(among)} times: by the entries {', '.join(among)}"


def _open(
    config: DataConfig,
    files: Mapping[Path, str],
    columns: Columns,
    *,
    tokenizer: Any,
    say: Callable[[str], None],
    sorted_by: str | None,
) -> list[RowSource]:
    of_template, keys = variables(tokenizer), message_keys(tokenizer)
    return [
        rows_of_file(
            path,
            columns,
            config.apply_chat_template_kwargs,
            max_length=config.max_length,
            say=say,
            name=name,
            sorted_by=sorted_by,
            variables=of_template,
            keys_read=keys,
        )
        for path, name in files.items()
    ]


def short_names(entries: Sequence[str]) -> list[str]:
    """Paths, globs, directories and hub ids as metrics and tables call them, each unlike the others.

    ["data/val.jsonl"] -> ["val"], and ["a/val.jsonl", "b/val.jsonl"] -> ["a/val", "b/val"]
    """
    names = [_end_of(entry, 1) for entry in entries]
    return unique(
        name if names.count(name) == 1 else _end_of(entry, 2) for name, entry in zip(names, entries, strict=True)
    )


def _end_of(entry: str, parts: int) -> str:
    said = [part for part in Path(entry).parts if not glob.has_magic(part) and part not in ("/", "..")]
    if not said:
        return entry
    last = Path(said[-1])
    return "/".join([*said[-parts:-1], last.stem if last.suffix in DATA_SUFFIXES else last.name])


def unique(names: Iterable[str]) -> list[str]:
    """Return the same names, those that stand there again numbered: ["val", "val"] -> ["val", "val_2"]."""
    given: list[str] = []
    for name in names:
        numbered = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
        given.append(next(candidate for candidate in numbered if candidate not in given))
    return given
