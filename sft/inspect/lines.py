"""Write samples as JSONL, for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sft.inspect.tokens import SeenSample


def write_lines(path: Path, samples: Iterable[SeenSample]) -> int:
    """Write one object per sample: row, input_ids, tokens, loss_weights. Returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            line = {
                "row": sample.where,
                "input_ids": [token.id for token in sample.tokens],
                "tokens": [token.text for token in sample.tokens],
                "loss_weights": [token.weight for token in sample.tokens],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count
