"""Profile a few steps of a run: a trace of what ran when, a table of the most expensive kernels, and idle time.

<run>/profile/steps_10_to_12_rank_0.json.gz    for https://ui.perfetto.dev or chrome://tracing
<run>/profile/steps_10_to_12_rank_0.txt        the kernels that took longest, and how long nothing ran
<run>/profile/steps_10_to_12_rank_0_memory.pickle    on CUDA, for https://pytorch.org/memory_viz
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile

from sft.errors import InputError
from sft.parallel.world import World, log

PROFILE = "profile"
ROWS = 30
"""Kernels in the table."""

MAX_ALLOCATIONS = 200_000
"""Events that the history of CUDA's memory keeps."""


class Profiler:
    """Record the steps `first` to `last` on this rank. Every other step costs nothing."""

    def __init__(self, steps: tuple[int, int] | None, run_dir: Path, world: World, *, total_steps: int):
        """Take trainer.profile_steps. Raises InputError for steps that the run does not have."""
        if steps is not None and steps[1] > total_steps:
            raise InputError(
                f"trainer.profile_steps={list(steps)}: the run has {total_steps} steps; name two of them, first and "
                "last."
            )
        self._steps = steps
        self._directory, self._world = run_dir / PROFILE, world
        self._profile: profile | None = None

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Record what happens in the block, where `step` is one to profile."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            yield
            return
        if self._profile is None:
            self._start(step)
        yield
        if step == self._steps[1]:
            self._finish(step)

    def _start(self, step: int) -> None:
        on_cuda = self._world.device.type == "cuda"
        if on_cuda:
            torch.cuda.memory._record_memory_history(max_entries=MAX_ALLOCATIONS)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        self._profile = profile(activities=activities)
        self._profile.start()
        self._first, self._began = step, time.perf_counter()

    def _finish(self, step: int) -> None:
        recorded, on_cuda = self._profile, self._world.device.type == "cuda"
        assert recorded is not None
        if on_cuda:
            torch.cuda.synchronize(self._world.device)
        seconds = time.perf_counter() - self._began
        recorded.stop()
        self._profile = None
        stem = f"steps_{self._first}_to_{step}_rank_{self._world.rank}"
        try:  # watching never costs the run
            self._directory.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(self._directory / f"{stem}.json.gz"))
            told = describe(recorded, seconds, steps=step - self._first + 1, on_cuda=on_cuda)
            (self._directory / f"{stem}.txt").write_text(told)
            if on_cuda:
                torch.cuda.memory._dump_snapshot(str(self._directory / f"{stem}_memory.pickle"))
        except OSError as error:
            log.warning("trainer.profile_steps: the profile cannot be written (%s)", error)
            return
        finally:
            if on_cuda:
                torch.cuda.memory._record_memory_history(enabled=None)
        log.info("profile of steps %d to %d: %s", self._first, step, self._directory / f"{stem}.txt")


def describe(recorded: profile, seconds: float, *, steps: int, on_cuda: bool) -> str:
    """Return the table of the most expensive kernels, below a line that says how long the device had nothing to do.

    seconds: by the clock, of all `steps`
    """
    kind = DeviceType.CUDA if on_cuda else DeviceType.CPU
    events: Any = recorded.events()
    busy = busy_s((e.time_range.start, e.time_range.end) for e in events if e.device_type == kind)
    order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    what = "the GPU ran kernels" if on_cuda else "torch computed"
    idle = max(0.0, seconds - busy)
    table = recorded.key_averages().table(sort_by=order, row_limit=ROWS)
    return (
        f"{steps} steps took {seconds:.3f} s; {what} for {busy:.3f} s of it; for {idle:.3f} s ({idle / seconds:.0%}) "
        f"nothing ran\n\n{table}\n"
    )


def busy_s(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of (start, end) intervals: microseconds in, seconds out."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1e6
