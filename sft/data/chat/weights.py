"""Which messages of a row are trained, and how much: the weight that all tokens of a message carry in the loss.

    train_on        weight of a message that says nothing of its own
    assistant       1 for the assistant's, 0 for all others
    last_assistant  1 for the assistant's last, 0 for all others
    all             1, and the template's own words count like the messages
    custom          0

A message's own weight beats the mode. It has many names: `train: false`, `loss: false`, `loss_mask: 0`,
`masked: true` and `weight: 0` say the same. What the prompt column of a row holds (the first `given` messages) is
no reply of this row, and is trained only in the mode `all`, or where it states a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft.data.types import ConfigMistake
from sft.errors import InputError
from sft.types import Sample

FLAGS = ("train", "trainable", "training", "loss", "loss_mask")
NEGATED_FLAGS = ("masked",)
MASKS = ("loss", "loss_mask", *NEGATED_FLAGS)  # written as 0 and 1, too
NUMBERS = ("weight", "loss_weight", "loss_scale")
MAX_WEIGHT = float(np.finfo(np.float32).max)  # beyond it a sample would keep inf
WEIGHT_KEYS = (*FLAGS, *NEGATED_FLAGS, *NUMBERS)
DETAILS = ("train_detail", "training_detail")
"""Where a message states which of its characters are trained (details.py)."""


def message_weights(messages: Sequence[Mapping[str, Any]], train_on: str, where: str, *, given: int = 0) -> list[float]:
    """Return the loss weight of each message, at least 0.

    given: how many messages, from the first on, stand in the prompt column of the row

    Raises InputError naming the message for a weight that is none, for two names that disagree, and for a weight
    on a message that the mode cannot train.
    """
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages]
    last = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else None
    weights = []
    for k, (message, role) in enumerate(zip(messages, roles, strict=True)):
        own = own_weight(message, f"{where}: messages[{k}]") if isinstance(message, Mapping) else None
        if own is None:
            is_reply = role == "assistant" and k >= given
            modes = {"assistant": is_reply, "last_assistant": is_reply and k == last, "all": True, "custom": False}
            weights.append(float(modes[train_on]))
            continue
        if role != "assistant" and own != (train_on == "all") and train_on != "custom":
            raise ConfigMistake(
                f"{where}: messages[{k}] ({role}) carries the loss weight {own:g}, which data.train_on={train_on} "
                "cannot give to this role; take it out, or set data.train_on=custom."
            )
        weights.append(own)
    return weights


def own_weight(message: Mapping[str, Any], where: str) -> float | None:
    """Return the weight that a message states; None if it states none (Arrow's null is none)."""
    stated = {key: message[key] for key in WEIGHT_KEYS if message.get(key) is not None}
    if not stated:
        return None
    weights = {}
    for key, value in stated.items():
        is_flag = isinstance(value, bool) or (key in MASKS and isinstance(value, int) and value in (0, 1))
        if key not in NUMBERS and not is_flag:
            raise InputError(f"{where}.{key} must be true or false, found {value!r}; numbers go into `weight`.")
        if key in NUMBERS and not _is_weight(value):
            flags = "; true and false go into `train`" if isinstance(value, bool) else ""
            raise InputError(f"{where}.{key} must be a finite number of at least 0, found {value!r}{flags}.")
        weights[key] = 1 - float(value) if key in NEGATED_FLAGS else float(value)
    if len(set(weights.values())) > 1:
        told = ", ".join(f"{key}={value!r}" for key, value in stated.items())
        raise InputError(f"{where} states its weight more than once, and differently: {told}; keep one.")
    return next(iter(weights.values()))


def _is_weight(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # 1e-50 would be kept as 0.
    return 0 <= value <= MAX_WEIGHT and bool(np.float32(value) > 0) == (value > 0)


def weighted(samples: list[Sample], weight: float) -> list[Sample]:
    """Return the samples of a row with its own weight: their loss weights times it; none where it is 0."""
    if weight == 1:
        return samples
    if weight == 0:
        return []
    return [Sample(sample.input_ids, sample.loss_weights * np.float32(weight)) for sample in samples]
