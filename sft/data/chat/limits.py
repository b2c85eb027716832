"""Limit what a chat template may take: it is a program from somewhere else, and runs once per turn of every row."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_SECONDS = 5.0
"""Of processor time: a render takes milliseconds, on a busy machine too."""

MAX_CHARACTERS = 32_000_000
MAX_BYTES = 2_000_000_000
"""By which the process may grow during one render."""

TICK_S = 0.25
PAGE = 4096


class TemplateLimitError(Exception):
    """A template took more time or memory than any conversation needs."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise TemplateLimitError in the body once it takes more than MAX_SECONDS or MAX_BYTES.

    Signals reach the main thread alone; in another one there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    started, size = time.process_time(), []

    def tick(*_: object) -> None:
        size.append(_resident_bytes())
        if (seconds := time.process_time() - started) > MAX_SECONDS:
            raise TemplateLimitError(f"it has not ended after {seconds:.1f} s; the limit is {MAX_SECONDS:g} s")
        if size[-1] - size[0] > MAX_BYTES:
            raise TemplateLimitError(f"it takes {(size[-1] - size[0]) / 1e9:.1f} GB of memory")

    before = signal.signal(signal.SIGVTALRM, tick)
    signal.setitimer(signal.ITIMER_VIRTUAL, TICK_S, TICK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def check_length(text: str) -> str:
    """Return the text a template wrote. Raises TemplateLimitError if it is longer than any conversation."""
    if len(text) > MAX_CHARACTERS:
        raise TemplateLimitError(f"it wrote {len(text):,} characters; the limit is {MAX_CHARACTERS:,}")
    return text


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:  # not Linux: time alone is limited
        return 0
