"""Draw loss.png from metrics.jsonl: training and validation loss, with the learning rate below."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sft.config.visible import visible_line
from sft.files import replace_file
from sft.track.files import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REDRAW_EVERY_S = 60.0
TIME_SHARE = 0.01  # drawing stops the training loop: it may take this share of the time at most
SMOOTHED_SHARE = 0.04  # the thick line averages over this share of the steps
LOG_SCALE_FROM = 20.0  # a loss that falls by this factor would be a flat line on a linear axis


class LossCurve:
    """Redraws loss.png now and then while steps arrive, and once at the end."""

    def __init__(self, path: Path, metrics_path: Path, *, title: str, clock: Callable[[], float] = time.monotonic):
        self._path = path
        self._metrics_path = metrics_path
        self._title = title
        self._clock = clock
        self._next_drawing = clock() + REDRAW_EVERY_S

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        start = self._clock()
        if start >= self._next_drawing:
            draw(self._metrics_path, self._path, title=self._title)
            end = self._clock()
            self._next_drawing = end + max(REDRAW_EVERY_S, (end - start) / TIME_SHARE)

    def close(self) -> None:
        draw(self._metrics_path, self._path, title=self._title)


def draw(metrics_path: Path, png_path: Path, *, title: str) -> None:
    """Draw `metrics_path` into `png_path`; without a training step there is nothing to draw."""
    if metrics_path.exists():
        there = metrics_path.stat()
        if png := _picture(metrics_path, (there.st_mtime_ns, there.st_size), title):
            replace_file(png_path, png)


@lru_cache(maxsize=1)  # at its end a run draws the same numbers twice: for its card, and for its directory
def _picture(metrics_path: Path, version: tuple[int, int], title: str) -> bytes | None:
    records, _ = read_metrics(metrics_path)
    steps, loss = _series(records, "train/loss")
    if not len(steps):
        return None
    from matplotlib.figure import Figure  # half a second, paid by those who draw; Figure alone means Agg, no display

    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    figure.suptitle(visible_line(title), x=0.01, horizontalalignment="left", fontweight="bold", parse_math=False)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    smooth = _smoothed(loss)
    top.plot(steps, loss, color="tab:blue", alpha=0.3, linewidth=0.8, label="train")
    top.plot(steps, smooth, color="tab:blue", linewidth=2, label="train, smoothed")
    val_steps, val_loss = _series(records, "val/loss")
    if len(val_steps):
        top.plot(val_steps, val_loss, "o-", color="tab:orange", markersize=5, linewidth=1.2, label="validation")
    if smooth.min() > 0 and smooth.max() > LOG_SCALE_FROM * smooth.min():
        top.set_yscale("log")
    top.set_ylabel("loss (nats per token)")
    top.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)  # above the axes, off the data
    bottom.plot(*_series(records, "train/lr"), color="tab:green", linewidth=1.5)
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    for panel in (top, bottom):
        panel.grid(alpha=0.3)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    """Return the picture; a letter that no font here has is drawn as a box, and nothing is said of it."""
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(png, format="png")
    return png.getvalue()


def _series(records: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of one metric, where it has a finite value."""
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over a window centred on each value; at both ends over the part of the window that exists."""
    half = int(len(values) * SMOOTHED_SHARE / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def draw_several(runs: Mapping[str, Path], png_path: Path, *, metric: str, title: str) -> bool:
    """Draw one metric of several runs (label -> metrics.jsonl, best first) into one picture. False: there is nothing.

    A metric of single steps is smoothed.
    """
    series = {label: _series(read_metrics(path)[0], metric) for label, path in runs.items() if path.is_file()}
    series = {label: points for label, points in series.items() if len(points[0])}
    if not series:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    figure.suptitle(visible_line(title), x=0.01, horizontalalignment="left", fontweight="bold", parse_math=False)
    panel = figure.subplots()
    for rank, (label, (steps, values)) in enumerate(series.items()):
        values = _smoothed(values) if metric.startswith("train/") else values
        panel.plot(steps, values, "o-" if len(steps) < 50 else "-", label=label, linewidth=2.5 if rank == 0 else 1.2)
    panel.set_xlabel("step")
    panel.set_ylabel(metric)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(title="best first", frameon=False)
    replace_file(png_path, _png(figure))
    return True
