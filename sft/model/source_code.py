"""What the source code of a model's modules tells about them, where nothing else does."""

from __future__ import annotations

import inspect
import re
from functools import cache

import torch

RAW = r"self\.{leaf}\.weight\b(?!\.(dtype|device|shape|size))"


def is_read_raw(model: torch.nn.Module, name: str) -> bool:
    """Return True if the weight of module `name` is read by the module around it, past its own forward.

    That is how fused kernels get weights, such as Mamba's conv1d and out_proj. An adapter there would not count, and
    FSDP2 would not gather a group of its own there.
    """
    parent, _, leaf = name.rpartition(".")
    return re.search(RAW.format(leaf=re.escape(leaf)), _source_of(model.get_submodule(parent))) is not None


@cache
def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # made while the program runs
        return ""


def _source_of(module: torch.nn.Module) -> str:
    """Return the source of a module's class and of those that it extends, without torch's own."""
    return "\n".join(_source(kind) for kind in type(module).__mro__ if not kind.__module__.startswith("torch."))
