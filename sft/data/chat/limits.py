"""Limit what a chat template may take: it is a program from somewhere else, and runs once per turn of every row."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError, nodes

MAX_SECONDS = 5.0
"""Of processor time: a render takes milliseconds, on a busy machine too."""

MAX_CHARACTERS = 32_000_000
MAX_BYTES = 2_000_000_000
"""By which the process may grow during one render."""

MAX_EXPONENT = 3
TICK_S = 0.25
PAGE = 4096

GENERATION = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")
"""The tags around what the assistant says; transformers' own, which Jinja does not know."""


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


def limit_behind(error: BaseException | None) -> TemplateLimitError | None:
    """Return the limit that an exception tells of, or that it hides: Jinja fails where it cannot tell a line of one."""
    while error is not None and not isinstance(error, TemplateLimitError):
        error = error.__context__
    return error


@lru_cache(maxsize=64)
def line_of_power(template: str) -> int | None:
    """Return the line where a template raises to a power that could take hours; None where it does not.

    `9 ** 9 ** 9` is one call of C, and no signal is heard before it returns. Products and texts of any size do not
    take that long.
    """
    read = parsed(template)
    for power in read.find_all(nodes.Pow) if read else ():
        exponent = power.right.value if isinstance(power.right, nodes.Const) else None
        if not isinstance(exponent, int | float) or exponent > MAX_EXPONENT:
            return power.lineno
    return None


def parsed(template: str) -> nodes.Template | None:
    """Return the tree of a template; None where it is none, which is said, with its row, where it is applied."""
    try:
        return Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION.sub("", template))
    except TemplateSyntaxError:
        return None


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
