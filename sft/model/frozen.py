"""Freeze parameters that a run shall leave as they are: no gradient, no optimizer state, exported bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sft.errors import InputError
from sft.model.names import matching, shown_name


def freeze(model: torch.nn.Module, frozen: Sequence[str], train_only: Sequence[str]) -> str | None:
    """Freeze what `frozen` matches, and what `train_only` does not match, where it names anything.

    Both are regular expressions, searched in the names of parameters that train so far. Returns a line for the log;
    None where nothing was asked. Raises InputError for a pattern that matches nothing, and where nothing is left.
    """
    if not frozen and not train_only:
        return None
    trainable = {shown_name(name): weight for name, weight in model.named_parameters() if weight.requires_grad}
    stays = {name for pattern in train_only for name in matching("model.train_only", pattern, trainable)}
    goes = {name for pattern in frozen for name in matching("model.frozen", pattern, trainable)}
    left = (stays if train_only else set(trainable)) - goes
    if not left:
        raise InputError(
            "model.frozen and model.train_only leave nothing to train: every parameter is frozen. Make a pattern "
            "narrower, or take it out."
        )
    for name, weight in trainable.items():
        weight.requires_grad_(name in left)
    numbers = {name: weight.numel() for name, weight in trainable.items()}
    trained, total = sum(numbers[name] for name in left), sum(numbers.values())
    return (
        f"frozen: {len(trainable) - len(left)} of {len(trainable)} parameters; {len(left)} train, "
        f"{trained / 1e6:,.1f} M of {total / 1e6:,.1f} M numbers"
    )
