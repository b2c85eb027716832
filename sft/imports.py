"""Importing torch and transformers in three quarters of the time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """For imports of a command's own: no garbage is collected meanwhile, and what they made is never looked through.

    Half a million objects are made, nearly all of them to stay, and the collector walks over all of them again and
    again: a quarter of the time that the imports take, and a pause in any later step.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
