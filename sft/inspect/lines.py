"""Write samples as JSONL, for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.files import explaining_disk
from sft.inspect.tokens import SeenSample


def write_lines(path: Path, samples: Iterable[SeenSample]) -> int:
    """Write one object per sample: row, input_ids, tokens, loss_weights. Returns how many."""
    count, aside = 0, path.with_name(f".{path.name}.partial")
    with _whole_or_not_at_all(path, aside), aside.open("w", encoding="utf-8") as file:
        for sample in samples:
            line = {
                "row": sample.where,
                "input_ids": [token.id for token in sample.tokens],
                "tokens": [token.text for token in sample.tokens],
                "loss_weights": [token.weight for token in sample.tokens],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    aside.replace(path)
    return count


@contextmanager
def _whole_or_not_at_all(path: Path, aside: Path) -> Iterator[None]:
    try:
        with explaining_disk(f"inspect.out={path}", "Make room there, or name another file."):
            yield
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
