"""What every corpus needs: rows in, one parquet file out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NamedRow = tuple[str, dict[str, Any]]
"""("file:row", row); rows are counted from 1, as lines are."""


def read_split(directory: Path | None, split: str, *, hub_id: str, config: str) -> Iterator[NamedRow]:
    """The rows of {split}.jsonl or {split}.parquet in `directory`; without a directory, those of the hub.

    Raises ValueError naming what is not there or cannot be read.
    """
    if directory is None:
        return _read_hub(hub_id, config, split)
    jsonl, parquet = directory / f"{split}.jsonl", directory / f"{split}.parquet"
    if jsonl.is_file():
        return _read_jsonl(jsonl)
    if parquet.is_file():
        return _named(parquet.name, pq.read_table(parquet).to_pylist())
    raise ValueError(f"{directory} has neither {jsonl.name} nor {parquet.name}; check --local_dataset_path.")


def write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the rows; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(pa.Table.from_pylist(list(rows)), aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _read_jsonl(path: Path) -> Iterator[NamedRow]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield f"{path.name}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path.name}:{number}: not JSON ({error}): {line[:80]!r}.") from error


def _read_hub(hub_id: str, config: str, split: str) -> Iterator[NamedRow]:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports] - optional
    except ImportError as error:
        raise ValueError(
            f"reading {hub_id} from the hub needs the datasets package: pip install datasets; "
            f"or give --local_dataset_path, a directory with {split}.jsonl."
        ) from error
    return _named(f"{hub_id}/{split}", load_dataset(hub_id, config, split=split))


def _named(name: str, rows: Any) -> Iterator[NamedRow]:
    return ((f"{name}:{number}", row) for number, row in enumerate(rows, start=1))
