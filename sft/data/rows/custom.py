"""data.custom_cls: rows from a class of the user's, in verl's manner.

    cls(parquet_files=[...], tokenizer=tokenizer, config=<the data section>), with __len__ and __getitem__

An item is a dict. With `messages` (and `tools`) it is a conversation like any other. With `input_ids` it is a sample
already, and says itself what is trained, by exactly one of

    loss_weights  [L]  weight of predicting this token
    labels        [L]  this token where it is trained, -100 elsewhere (Hugging Face; not shifted)
    loss_mask     [L]  1 where the prediction of the *next* token is trained (verl's SFTDataset)

`attention_mask` [L], where there is one, is 0 on padding.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sft.config import DataConfig
from sft.data.chat.values import plain
from sft.data.rows.cells import few, short
from sft.data.rows.files import fingerprint_file
from sft.data.rows.formats import Columns, to_conversation
from sft.data.rows.source import Item, RowSource
from sft.data.types import Row, RowError
from sft.errors import InputError
from sft.types import IGNORE_INDEX, Sample

SAYS_WHAT_IS_TRAINED = ("loss_weights", "labels", "loss_mask")


def rows_of_class(
    files: Sequence[str],
    columns: Columns,
    tokenizer: Any,
    config: DataConfig,
    say: Callable[[str], None],
) -> RowSource:
    """Return the items of data.custom_cls, as rows known by "MyRows[3]". The class is asked where they are tokenised
    only.

    Raises InputError for a file or class that is not there; when asked, for whatever the class raises.
    """
    assert config.custom_cls.path is not None and config.custom_cls.name is not None, "the config door let half pass"
    path, name = Path(config.custom_cls.path), config.custom_cls.name
    cls = _load_class(path, name)
    opened: list[Any] = []

    def open_once() -> Any:
        if not opened:
            opened.append(_open(cls, name, path, files, tokenizer, config))
        return opened[0]

    say(
        f"{name}: rows come from data.custom_cls; their tokens are kept for as long as {path.name}, the *.py files "
        "beside it, the data files and the data section stay the same, whatever else the class may read"
    )
    if elsewhere := [spec for spec in files if not _files(spec)]:
        say(f"{name}: no files at {', '.join(elsewhere)}; what the class finds there may change unnoticed")
    return RowSource(
        name=name,
        around_number=(f"{name}[", "]"),
        fingerprint=lambda: [
            {script.name: fingerprint_file(script) for script in sorted(path.resolve().parent.glob("*.py"))},
            name,
            [[spec, *map(fingerprint_file, _files(spec))] for spec in files],
            {key: value for key, value in asdict(config).items() if key not in ("cache_dir", "custom_cls")},
        ],
        columns_found=frozenset(),
        format="custom",
        read=lambda: _items(open_once(), name, path),
        count=lambda: len(open_once()),
        convert=partial(
            to_item,
            columns=replace(columns, format="messages", messages_key="messages"),
            template_options=dict(config.apply_chat_template_kwargs),
            vocabulary=len(tokenizer),
        ),
        max_length=config.max_length,
        is_plain=False,
    )


def to_item(row: Row, columns: Columns, template_options: Mapping[str, Any], vocabulary: int) -> Item:
    """Turn an item of a custom dataset into a conversation, or return the sample that it holds. Raises RowError."""
    where, item = row
    if not isinstance(item, Mapping):
        raise RowError(f"{where} is {short(item)}, expected a dict with messages or input_ids.")
    if "input_ids" in item:
        return to_sample(item, where, vocabulary)
    if "messages" not in item:
        raise RowError(f"{where} has neither messages nor input_ids; found {few(item)}.")
    # Whether it comes from Arrow, where null says that a struct has no such key, only the class knows.
    return to_conversation((where, plain(item, drop_nulls=True)), columns, template_options)


def to_sample(item: Mapping[str, Any], where: str, vocabulary: int) -> Sample:
    """Return the checked sample of an item with input_ids, its padding removed. Raises RowError naming the item."""
    ids = _numbers(item, "input_ids", where)
    given = [key for key in SAYS_WHAT_IS_TRAINED if item.get(key) is not None]
    if len(given) != 1:
        raise RowError(
            f"{where} says what is trained by {' and '.join(given) or 'nothing'}; expected exactly one of "
            f"{', '.join(SAYS_WHAT_IS_TRAINED)} beside input_ids (found {few(item)})."
        )
    (key,) = given
    trained = _numbers(item, key, where)
    real = np.ones(len(ids), bool)
    if item.get("attention_mask") is not None:
        real = _numbers(item, "attention_mask", where) != 0
    for name, values in ((key, trained), ("attention_mask", real)):
        if len(values) != len(ids):
            raise RowError(f"{where}: {name} has {len(values)} values and input_ids {len(ids)}; expected as many.")
    ids, trained = ids[real], trained[real]
    if not np.issubdtype(ids.dtype, np.integer):
        raise RowError(f"{where}: input_ids hold {ids.dtype} numbers, expected whole ones.")
    if outside := sorted({*ids[(ids < 0) | (ids >= vocabulary)].tolist()}):
        raise RowError(f"{where}: input_ids hold {outside[:5]}, expected ids from 0 to {vocabulary - 1}.")
    weights = _weights(ids, trained, key, where)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise RowError(f"{where}: {key} holds a weight that is negative or not finite; expected 0 or more.")
    sample = Sample(ids.astype(np.int32), weights)
    if not sample.target_weights.any():
        raise RowError(f"{where}: {key} trains none of its {len(ids)} tokens (the first cannot be predicted).")
    return sample


def _weights(ids: np.ndarray, trained: np.ndarray, key: str, where: str) -> np.ndarray:
    """Return float32 [L], the weight of predicting each token, from any of the three ways to say it."""
    if key == "loss_weights":
        return trained.astype(np.float32)
    if key == "labels":
        labelled = trained != IGNORE_INDEX
        if (trained != ids)[labelled].any():
            raise RowError(
                f"{where}: labels differ from input_ids where they are not {IGNORE_INDEX}; expected labels that are "
                "not shifted (Hugging Face's convention)."
            )
        return labelled.astype(np.float32)
    if len(trained) and trained[-1]:
        raise RowError(
            f"{where}: loss_mask[-1]={trained[-1]}, expected 0: in verl's convention it speaks of the next token, and "
            "there is none. If yours speaks of the token itself, call it loss_weights."
        )
    return np.concatenate([[0.0], trained[:-1]]).astype(np.float32)


def _numbers(item: Mapping[str, Any], key: str, where: str) -> np.ndarray:
    try:
        values = np.asarray(item[key])
    except (TypeError, ValueError, RuntimeError) as error:
        raise RowError(f"{where}: {key} is {short(item[key])}, expected a list of numbers.") from error
    if values.ndim != 1 or not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise RowError(
            f"{where}: {key} is of shape {list(values.shape)} and type {values.dtype}, expected a list of numbers [L]."
        )
    return values


def _load_class(path: Path, name: str) -> type:
    module_name = f"sft_custom_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"data.custom_cls.path={path} is no python file; expected one that defines {name}.")
    module: ModuleType = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's program: whatever it raises is about it
        raise InputError(f"data.custom_cls.path={path} cannot be imported: {_told(error, path)}.") from error
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise InputError(f"data.custom_cls.name={name}: no such class in {path}; found {few(classes)}.")
    return cls


def _open(cls: type, name: str, path: Path, files: Sequence[str], tokenizer: Any, config: DataConfig) -> Any:
    from omegaconf import OmegaConf

    section = OmegaConf.create(asdict(config))
    try:
        rows = cls(parquet_files=list(files), tokenizer=tokenizer, config=section)
        len(rows)
    except Exception as error:
        raise InputError(
            f"data.custom_cls: {name}(parquet_files=..., tokenizer=..., config=...) and its len() must work; "
            f"found {_told(error, path)}."
        ) from error
    return rows


def _items(rows: Any, name: str, path: Path) -> Iterator[Row]:
    for index in range(len(rows)):
        try:
            item = rows[index]
        except Exception as error:
            raise RowError(f"{name}[{index}] raised {_told(error, path)}.") from error
        yield f"{name}[{index}]", item


def _told(error: Exception, path: Path) -> str:
    """Return the exception with the last line of the user's file that it went through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    at = f" ({path.name}:{lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{at}"


def _files(spec: str) -> list[Path]:
    """Return the files that a path, directory or glob stands for; none where only the class can read it."""
    path = Path(spec)
    paths = [path] if path.exists() else map(Path, glob.glob(spec, recursive=True))  # noqa: PTH207 - may be absolute
    return sorted(file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
