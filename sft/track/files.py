"""Write the files for reading: training.log for people, metrics.jsonl for programs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sft.files import append_whole, replace_file


def append_line(path: Path, line: str) -> None:
    """Add one line to a file of lines."""
    with path.open("ab", buffering=0) as file:
        append_whole(file, f"{line}\n".encode())


def write_samples(path: Path, step: int, samples: list[dict[str, str]]) -> None:
    """Write one JSON object per sample, `step` first; replaces what the file holds of `step` and later steps."""
    earlier, _ = read_metrics(path)
    records = [record for record in earlier if record["step"] < step] + [{"step": step} | sample for sample in samples]
    replace_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())


def timestamp() -> str:
    """Return the time now in ISO 8601, to the second, with the offset of the local time zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


class TrainingLog:
    """training.log: every line of the console after a timestamp. A resumed run appends."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)

    def say(self, text: str) -> None:
        append_whole(self._file, f"{timestamp()} {text}\n".encode("utf-8", "replace"))

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the objects of a metrics.jsonl in order, and the number of unreadable lines."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = [record for line in lines if (record := _parsed(line)) is not None]
    return records, len(lines) - len(records)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


class MetricsFile:
    """metrics.jsonl: one JSON object per step, `step` first, numbers at full precision.

    A number that is not finite is null, and a step without a finite training loss and gradient says "skipped": true.
    """

    def __init__(self, path: Path, *, keep_up_to_step: int):
        """Continue after `keep_up_to_step`; what the file holds beyond it is dropped, as are unreadable lines."""
        self.path = path
        records, self.unreadable_lines = read_metrics(path)
        kept = [record for record in records if record["step"] <= keep_up_to_step]
        lines = [_line(record) for record in kept]
        replace_file(path, b"".join(lines))
        self._last_record = kept[-1] if kept else {}
        self._last_offset = sum(map(len, lines[:-1]))
        self._file = path.open("r+b", buffering=0)
        self._file.seek(0, os.SEEK_END)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        record, before = _record(step, metrics), b""
        if self._last_record.get("step") == step:  # validation of a step already written: rewrite its line
            before, record = _line(self._last_record), self._last_record | record
            self._file.seek(self._last_offset)
        else:
            self._last_offset = self._file.tell()
        # One unbuffered write per step: a killed run loses no finished step.
        try:
            append_whole(self._file, _line(record))
        except OSError:
            with suppress(OSError):
                append_whole(self._file, before)  # it had room there
            raise
        self._file.truncate()
        self._last_record = record

    def sync(self) -> None:
        """Bring what was logged so far to the disk before this returns."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _record(step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    skipped = any(value is None for name, value in values.items() if name.startswith("train/"))
    return {"step": step, **values} | ({"skipped": True} if skipped else {})


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
