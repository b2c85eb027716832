"""Which messages of a row are trained, and how much: the weight that all tokens of a message carry in the loss.

    train_on        weight of a message that says nothing of its own
    assistant       1 for the assistant's, 0 for all others
    last_assistant  1 for the assistant's last, 0 for all others
    all             1, and the template's own words count like the messages
    custom          0

A message's own weight (`train`, `trainable`, `weight`, `loss_weight`) beats the mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft.errors import InputError

FLAGS = ("train", "trainable")
NUMBERS = ("weight", "loss_weight")
MAX_WEIGHT = float(np.finfo(np.float32).max)  # beyond it a sample would keep inf
WEIGHT_KEYS = (*FLAGS, *NUMBERS)


def message_weights(messages: Sequence[Mapping[str, Any]], train_on: str, where: str) -> list[float]:
    """The loss weight of each message, at least 0.

    Raises InputError naming the message for a weight that is none, for two names that disagree, and for a weight
    on a message that the mode cannot train.
    """
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages]
    last = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else None
    weights = []
    for k, (message, role) in enumerate(zip(messages, roles, strict=True)):
        own = _own_weight(message, f"{where}: messages[{k}]") if isinstance(message, Mapping) else None
        if own is None:
            is_trained = {"assistant": role == "assistant", "last_assistant": k == last, "all": True, "custom": False}
            weights.append(float(is_trained[train_on]))
            continue
        if role != "assistant" and own != (train_on == "all") and train_on != "custom":
            raise InputError(
                f"{where}: messages[{k}] ({role}) carries the loss weight {own:g}, which data.train_on={train_on} "
                "cannot give to this role; take it out, or set data.train_on=custom."
            )
        weights.append(own)
    return weights


def _own_weight(message: Mapping[str, Any], where: str) -> float | None:
    """The weight that a message states; None if it states none (Arrow's null is none)."""
    stated = {key: message[key] for key in WEIGHT_KEYS if message.get(key) is not None}
    if not stated:
        return None
    for key, value in stated.items():
        if key in FLAGS and not isinstance(value, bool):
            raise InputError(f"{where}.{key} must be true or false, found {value!r}; numbers go into `weight`.")
        if key in NUMBERS and not _is_weight(value):
            flags = "; true and false go into `train`" if isinstance(value, bool) else ""
            raise InputError(f"{where}.{key} must be a finite number of at least 0, found {value!r}{flags}.")
    if len({float(value) for value in stated.values()}) > 1:
        told = ", ".join(f"{key}={value!r}" for key, value in stated.items())
        raise InputError(f"{where} states its weight more than once, and differently: {told}; keep one.")
    return float(next(iter(stated.values())))


def _is_weight(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # 1e-50 would be kept as 0.
    return 0 <= value <= MAX_WEIGHT and bool(np.float32(value) > 0) == (value > 0)
