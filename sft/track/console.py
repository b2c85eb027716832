"""Print lines on the console; on a terminal, keep a progress bar below them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO, TypeVar

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

# What a line says of a training step, in this order; metrics.jsonl has the rest.
TRAIN_LINE = (
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "train/epoch",
    "perf/tokens_per_sec_per_gpu",
    "perf/mfu",
    "perf/max_memory_allocated_gb",
)
FORMATS = {"loss": ".4f", "lr": ".3e", "tokens_per_sec_per_gpu": ".0f"}


def step_line(step: int, metrics: Mapping[str, float]) -> str:
    """Write metrics as `step=1000 loss=1.2345 ... val_loss=...`; leaves out data/*."""
    others = [name for name in metrics if not name.startswith(("train/", "perf/", "data/"))]
    shown = [name for name in TRAIN_LINE if name in metrics] + others
    return " ".join([f"step={step}", *(_written(name, metrics[name]) for name in shown)])


TERMINAL_COLUMNS = 80
ON_A_TERMINAL = ("train/loss", "train/lr", "val/loss", "train/grad_norm", "perf/tokens_per_sec_per_gpu")
"""What a line on a terminal has room for, dearest first; the others stand in metrics.jsonl."""


def short_line(step: int, metrics: Mapping[str, float]) -> str:
    """Return `step_line` in at most 80 columns, without what is least asked for."""
    shown = [name for name in ON_A_TERMINAL if name in metrics] or [name for name in metrics if name.startswith("val/")]
    while len(line := step_line(step, {name: metrics[name] for name in metrics if name in shown})) > TERMINAL_COLUMNS:
        shown.pop()
    return line


def sample_table(step: int, answers: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the lines of a table of what the model answers, at most 80 columns wide; samples.jsonl has all of it."""
    width = min(24, max((len(sample["row"]) for sample in answers), default=0))
    cell = (TERMINAL_COLUMNS - width - 8) // 2
    head = [f"samples after step {step}:", f"  {'row':<{width}}  {'answer':<{cell}}  expected"] if answers else []
    return head + [
        f"  {sample['row'][-width:]:<{width}}  {_clipped(sample['answer'], cell):<{cell}}  "
        f"{_clipped(sample['expected'], cell)}"
        for sample in answers
    ]


def _clipped(text: str, width: int) -> str:
    """Return text as one line of at most `width` characters: line ends and other control characters are escaped."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:width])
    return line if len(line) <= width and len(text) <= width else line[: width - 3] + "..."


def _written(name: str, value: float) -> str:
    quantity = name.rsplit("/", 1)[-1]
    key = name.removeprefix("train/").removeprefix("perf/").replace("/", "_")
    return f"{key}={value:{FORMATS.get(quantity, '.4g')}}"


class Console:
    """Sentences always, step lines and progress bar if `show_steps`; the bar only where stdout is a terminal."""

    def __init__(self, total_steps: int, start_step: int, *, show_steps: bool, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._show_steps = show_steps
        self._bar: Progress | None = None
        self._training = TaskID(0)
        if show_steps and self._stream.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=RichConsole(file=self._stream),
                refresh_per_second=4,
                transient=True,  # what stays are the lines above it
                expand=True,
            )
            self._training = self._bar.add_task("step", total=total_steps, completed=start_step, facts="")
            self._bar.start()

    def say(self, text: str) -> None:
        if self._bar:
            # soft_wrap: the terminal breaks long lines, so that copying one gives one line.
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._stream.write(f"{text}\n")  # one write: trackers print from their threads
            self._stream.flush()

    def show_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._show_steps:
            self.say(short_line(step, metrics) if self._bar else step_line(step, metrics))

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar to the end of training step `step`."""
        if self._bar and "train/loss" in metrics:
            facts = f"loss {metrics['train/loss']:.4f} lr {metrics['train/lr']:.1e}"
            if "perf/tokens_per_sec_per_gpu" in metrics:
                facts += f" {metrics['perf/tokens_per_sec_per_gpu']:,.0f} tok/s/GPU"
            self._bar.update(self._training, completed=step, facts=facts)

    def progress(self, items: Iterable[Item], description: str, total: int | None) -> Iterable[Item]:
        """Yield the items, and count them with a second bar that goes away at their end."""
        if self._bar is None:
            yield from items
            return
        task = self._bar.add_task(description, total=total, facts="")
        try:
            for item in items:
                yield item
                self._bar.advance(task)
        finally:
            self._bar.remove_task(task)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
