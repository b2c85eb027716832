"""Count how often which sizes occur, for text and for a drawing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_BARS = 12
WIDTH = 40  # characters of the longest bar


@dataclass(frozen=True)
class Bar:
    """`count` values from `low` to `high`, both included."""

    low: int
    high: int
    count: int


def histogram(values: np.ndarray) -> list[Bar]:
    """Count values in at most MOST_BARS bars of equal width (1, 2 or 5 times a power of ten)."""
    smallest, largest = int(values.min()), int(values.max())
    widths = (step * 10**power for power in range(12) for step in (1, 2, 5))
    width = next(width for width in widths if largest // width - smallest // width < MOST_BARS)
    first = smallest // width
    counts = np.bincount(values // width - first)
    return [Bar(n * width, (n + 1) * width - 1, int(count)) for n, count in enumerate(counts, start=first)]


def text_bars(values: np.ndarray, *, mark: tuple[int, str] | None = None) -> list[str]:
    """Draw a histogram as text, a line per bar. mark: (a value, what to write beside the bar that holds it)."""
    bars = histogram(values)
    most = max(bar.count for bar in bars)
    labels = [f"{bar.low:,}-{bar.high:,}" if bar.high > bar.low else f"{bar.low:,}" for bar in bars]
    room = max(map(len, labels))
    lines = []
    for bar, label in zip(bars, labels, strict=True):
        block = "█" * max(round(WIDTH * bar.count / most), bar.count > 0)
        here = f"  <- {mark[1]}" if mark and bar.low <= mark[0] <= bar.high else ""
        lines.append(f"{label:>{room}}  {block:<{WIDTH}}  {bar.count:,}{here}".rstrip())
    if mark and mark[0] > bars[-1].high:
        lines.append(f"{'':>{room}}  ({mark[1]} is longer than any of them)")
    return lines
