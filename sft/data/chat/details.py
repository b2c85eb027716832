"""Which characters of a reply are trained: axolotl's `train_detail`, and weights of the parts of a content.

    train_detail  [{"begin_offset": 0, "end_offset": 3, "train": false}]: characters 0 to 3, the last one included
    a part        {"type": "text", "text": "...", "train": false}, or another key of weights.py

Characters of which nothing is stated have the weight of their message. A token that says characters of several weights
gets the least of them: nothing is trained that is marked as untrained. The stop token goes with the last character.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sft.data.chat.messages import parts_of
from sft.data.chat.proof import MaskError
from sft.data.chat.template import TurnShape
from sft.data.chat.turns import Span
from sft.data.chat.values import is_empty, plain
from sft.data.chat.weights import DETAILS, WEIGHT_KEYS, own_weight
from sft.data.types import ConfigMistake
from sft.errors import InputError


def character_weights(message: Mapping[str, Any], where: str) -> np.ndarray | None:
    """Return by what the weight of a message is multiplied in each character of its content, float32 [characters].

    None: the message states nothing of single characters.

    Raises InputError for ranges and weights that are none, ConfigMistake where the message is not the assistant's.
    """
    content = message.get("content")
    stated = [key for key in DETAILS if not is_empty(message.get(key))]
    parts = content if isinstance(content, list) else []
    weighted = [n for n, part in enumerate(parts) if isinstance(part, Mapping) and _states_weight(part)]
    if not stated and not weighted:
        return None
    told = f"{where}.{stated[0]}" if stated else f"{where}.content[{weighted[0]}]"
    if message.get("role") != "assistant":
        raise ConfigMistake(
            f"{told} weighs characters of the role {message.get('role')!r}, expected the assistant's. Give the weight "
            "to the message, or leave it out by data.ignore_message_keys."
        )
    if (read := parts_of(content)) is None:
        raise InputError(f"{told} weighs characters of a content that is no text; found {content!r}.")
    if stated and (weighted or len(stated) > 1):
        raise InputError(f"{told}: the weights of characters are stated more than once; keep one.")
    weights = _of_ranges(message[stated[0]], read, told) if stated else _of_parts(parts, read, where)
    if own_weight(message, where) == 0 and weights.any():
        raise InputError(f"{told} trains characters of a message whose own weight is 0; take one of them out.")
    return weights


def placed(turn: tuple[str, Span], content: str, weights: np.ndarray, shape: TurnShape, where: str) -> tuple[str, Span]:
    """Return the turn with the weights of its characters, where the text shows the content as it is.

    Raises MaskError where it does not, or where something follows the content (a call of tools).
    """
    text, span = turn
    body = text[span.start : span.end].removesuffix(shape.stop)
    said, begin = content.strip(), len(content) - len(content.lstrip())
    at = body.rfind(said)
    end = at + len(said)
    if not said or at < 0 or body[end:].strip() != shape.before_stop.strip():
        raise MaskError(
            where,
            span.turn,
            "its characters have weights of their own, and the chat template does not end the reply with its content",
            expected=said + shape.before_stop + shape.stop,
            found=text[span.start : span.end],
            way_out="Take the weights of characters out of this message.",
        )
    of_characters = np.ones(span.end - span.start, np.float32)
    of_characters[at:end] = weights[begin : begin + len(said)]
    of_characters[end:] = of_characters[end - 1]
    return text, replace(span, characters=of_characters)


def _states_weight(part: Mapping[str, Any]) -> bool:
    return any(part.get(key) is not None for key in WEIGHT_KEYS)


def _of_ranges(ranges: Any, parts: Sequence[tuple[bool, str]], where: str) -> np.ndarray:
    """Return the weights that begin_offset, end_offset and train of each range say."""
    length = sum(len(words) for is_thought, words in parts if not is_thought)
    weights, is_set = np.ones(length, np.float32), np.zeros(length, bool)
    ranges = plain(ranges)
    for n, item in enumerate(ranges if isinstance(ranges, list) else [ranges]):
        keys = ("begin_offset", "end_offset", "train")
        begin, end, train = (item.get(key) for key in keys) if isinstance(item, Mapping) else (None, None, None)
        if not (
            isinstance(begin, int)
            and isinstance(end, int)
            and isinstance(train, bool)
            and 0 <= begin <= end < length
            and item.keys() == {*keys}
        ):
            raise InputError(
                f"{where}[{n}] is {item!r}, expected begin_offset and end_offset, characters from 0 to {length - 1} of "
                "which the last is included, and train: true or false."
            )
        covered = slice(begin, end + 1)
        if (is_set[covered] & (weights[covered] != train)).any():
            raise InputError(f"{where}[{n}] says train={train} of characters of which an earlier range says otherwise.")
        weights[covered], is_set[covered] = train, True
    return weights


def _of_parts(parts: Sequence[Any], read: Sequence[tuple[bool, str]], where: str) -> np.ndarray:
    """Return the weight of its part for every character."""
    weights: list[np.ndarray] = []
    for n, (part, (is_thought, words)) in enumerate(zip(parts, read, strict=True)):
        own = own_weight(part, f"{where}.content[{n}]") if isinstance(part, Mapping) else None
        if is_thought and own is not None:
            raise InputError(
                f"{where}.content[{n}] weighs a thought; expected weights of text. Give the weight to the message."
            )
        weights += [] if is_thought else [np.full(len(words), 1 if own is None else own, np.float32)]
    return np.concatenate(weights) if weights else np.ones(0, np.float32)
