"""What a name promises: whether a column, a key of a message or of a part would change the samples if it were read.

What nobody reads is harmless (ids, sources, scores) or dangerous (it looks like a system prompt, tools, masks, ...).
The words of the name decide, whatever its spelling (`lossMask`, `loss-mask`, `LOSS_MASK`), and then the value: what is
empty says nothing, and a number is no prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from sft.data.chat.values import is_empty

KINDS = {
    "system": "a system prompt",
    "tools": "tools",
    "history": "earlier turns",
    "weight": "a mask or a weight",
    "reasoning": "reasoning",
    "media": "pictures, sound or video",
    "preference": "a preference",
    "context": "documents that the question is about",
    "routing": "who speaks to whom",
    "prefill": "the beginning of a reply",
    "words": "words of the message",
}
"""Kinds of meaning, the order in which they are told."""

WORDS = {
    "system": "system sys sysprompt instructions preamble",
    "tools": "tool tools toolset function functions apis plugin plugins",
    "history": "history histories previous prior preceding earlier past",
    "weight": "mask masks masked unmasked loss weight weights weighting train trainable training trained untrained "
    "supervise supervised learn learnable",
    "reasoning": "reasoning reason think thinking thought thoughts cot rationale rationales scratchpad analysis "
    "deliberation",
    "media": "image images img imgs picture pictures photo photos pixel pixels audio audios sound sounds speech "
    "wav mp3 video videos media frames multimodal attachment attachments",
    "preference": "chosen rejected preferred dispreferred preference preferences kto accepted",
    "context": "document documents docs doc context contexts passage passages retrieved evidence knowledge",
    "routing": "channel recipient eot ipython",
    "prefill": "prefix prefill prefilled",
}
KIND_OF = {word: kind for kind, words in WORDS.items() for word in words.split()}

VERDICTS = frozenset({"label", "desirable", "good", "liked", "upvoted", "thumbs", "preferred", "accepted"})
"""Last words of names whose true and false tell good rows from bad ones."""

_ABOUT = (
    "id ids uuid hash count counts num length len tokens type types source sources score scores rating fingerprint "
    "version date time timestamp category categories lang language model generator dataset license level domain "
    "difficulty split origin author index name tags topic"
)
ABOUT = frozenset(_ABOUT.split())
"""Last words of names that speak about the thing, and are not the thing: `system_id`, `tool_count`."""

_NEGATIONS = (
    "no not non never without ignore ignored skip skipped exclude excluded drop disable disabled masked unmasked "
    "untrained unsupervised"
)
NEGATIONS = frozenset(_NEGATIONS.split())
"""Words of names whose 1 means that nothing is trained: `no_loss`, `ignore_loss`."""

HARMLESS = frozenset(
    {"used_in_training", "tool_choice", "parallel_tool_calls", "train_test_split", "message_loss_type"}
)

HARMLESS_FLAGS = {"eot": True, "ipython": False, "prefix": False}
"""What these say where nothing is meant by them (torchtune's messages)."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_COMPOUND = re.compile(
    r"(system|tool|function|loss|train|image|audio|video|reasoning|thinking|thought|history|chosen|rejected|kto|context)"
    r"(prompt|message|msg|text|mask|weight|call|content|list|url|path|detail|tag|flag|def|data|response|answer)s?"
)


@lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name in small letters: "lossMask", "loss-mask" and "LOSS_MASK" are (loss, mask)."""
    words: list[str] = []
    for word in map(str.lower, _WORD.findall(name)):
        compound = _COMPOUND.fullmatch(word)
        words += compound.groups() if compound else [word]
    return tuple(words)


def kind_of(name: str, value: Any) -> str | None:
    """Return the kind of meaning (a key of KINDS) that a name and a value promise; None if they are harmless."""
    words = words_of(name)
    if not words or is_empty(value):
        return None
    if isinstance(value, bool) and HARMLESS_FLAGS.get(words[-1]) is value:
        return None
    if words[-1] in VERDICTS and _as_flag(value) is not None:
        return "preference"
    if words[-1] == "labels" and not isinstance(value, str):
        return "weight"  # -100 where a token is not trained
    if words[-1] in ABOUT or "_".join(words) in HARMLESS:
        return None
    whole = re.split(r"[\W_]+", name.lower())  # "CoT" is one word
    kinds = {KIND_OF[word] for word in (*words, *whole) if word in KIND_OF}
    return next((kind for kind in KINDS if kind in kinds and _may_be(kind, value)), None)


def can_be_weight(name: str, value: Any) -> bool:
    """Return True if a value says how much is trained: a number or a flag, whose name does not say the opposite."""
    return isinstance(value, int | float) and not NEGATIONS.intersection(words_of(name))


def dangers(cells: Mapping[str, Any], read: Iterable[str]) -> dict[str, str]:
    """Return {name: kind} of what is not read, and means something."""
    unread = cells.keys() - read
    found = {name: kind for name in unread if (kind := kind_of(str(name), cells[name]))}
    order = list(KINDS)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1]), item[0])))


def _may_be(kind: str, value: Any) -> bool:
    """Whether a value can be of this kind at all."""
    is_flag = isinstance(value, bool)
    is_number = isinstance(value, int | float) and not is_flag
    match kind:
        case "weight":
            return True
        case "preference" | "prefill" | "routing":
            return not is_number
        case "reasoning":  # "on" and "off" (Nemotron) stand in the system prompt, too
            return is_flag or (not is_number and _as_flag(value) is None)
    return not is_flag and not is_number


def _as_flag(value: Any) -> bool | None:
    """Return what a value says as a switch; None if it is none."""
    if isinstance(value, bool):
        return value
    spelt = value.strip().lower() if isinstance(value, str) else ""
    return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}.get(spelt)
