"""What a name promises: whether a column, a key of a message or of a part would change the samples if it were read.

What nobody reads is harmless (ids, sources, scores) or dangerous (it looks like a system prompt, tools, masks, ...).
The words of the name decide, whatever its spelling (`lossMask`, `loss-mask`, `LOSS_MASK`), and then the value: what is
empty says nothing, and a number is no prompt. Lists of turns and of schemas are known by their shape, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from sft.data.chat.values import is_empty

KINDS = {
    "system": "a system prompt",
    "tools": "tools",
    "history": "earlier turns",
    "weight": "a mask or a weight",
    "reasoning": "reasoning",
    "switch": "a switch of the chat template, which chat_template_kwargs (a column) would tell it",
    "media": "pictures, sound or video",
    "preference": "a preference",
    "chat": "another conversation",
    "pair": "another question or reply",
    "verdict": "a sign that it is to be left out",
    "context": "documents that the question is about",
    "routing": "who speaks to whom",
    "prefill": "the beginning of a reply",
    "words": "words of the message",
}
"""Kinds of meaning, the order in which they are told."""

WORDS = {
    "system": "system sys sysprompt instructions preamble persona personas developer guidelines rules metaprompt",
    "tools": "tool tools toolset function functions apis plugin plugins",
    "history": "history histories previous prior preceding earlier past",
    "weight": "mask masks masked unmasked loss weight weights weighting train trainable training trained untrained "
    "supervise supervised learn learnable target targets importance advantage advantages coefficient coef multiplier "
    "upsample upsampling oversample oversampling repeat repeats repetitions w iw adv learning backprop grad grads "
    "gradient gradients optimize frozen freeze",
    "reasoning": "reasoning reason think thinking thought thoughts cot rationale rationales scratchpad analysis "
    "deliberation monologue explanation explanations",
    "media": "image images img imgs picture pictures photo photos pixel pixels audio audios sound sounds speech "
    "wav mp3 video videos media frames multimodal attachment attachments screenshot screenshots figure figures",
    "preference": "chosen rejected preferred dispreferred preference preferences kto accepted",
    "chat": "chat chats dialog dialogs dialogue dialogues conversation conversations messages turns",
    "context": "document documents docs doc context contexts passage passages retrieved evidence knowledge background "
    "paragraph paragraphs article articles schema schemas memory memories choices options ctx ctxs search story "
    "premise table tables ddl demonstration demonstrations shot shots starter suffix",
    "routing": "channel recipient eot ipython",
    "prefill": "prefix prefill prefilled partial continue",
}
KIND_OF = {word: kind for kind, words in WORDS.items() for word in words.split()}

VERDICTS = frozenset({"label", "desirable", "good", "liked", "upvoted", "thumbs", "preferred", "accepted"})
"""Last words of names whose true and false tell good rows from bad ones."""

_LEFT_OUT = (
    "ignore ignored skip skipped exclude excluded drop dropped discard discarded delete deleted remove removed bad "
    "wrong incorrect invalid truncated corrupted incomplete hallucinated"
)
LEFT_OUT_IF_TRUE = frozenset(_LEFT_OUT.split())
LEFT_OUT_IF_FALSE = frozenset({"correct", "valid"})
"""Last words of names of switches by which a row or a message is left out."""
_KEPT = "keep include included use used usable selected approved active enabled ok"
KEPT_IF_TRUE = frozenset(_KEPT.split())
"""Whole names of such switches, an `is_` before them or not: `tool_use` is none."""

CUT = frozenset({"length", "max_tokens", "max_output_tokens", "content_filter"})
"""What a finish_reason (stop_reason) says of a reply that was cut off: its last token is no stop."""

_ONE = frozenset({"last", "final", "context", "prompt", "answer", "response", "assistant"})
"""What is alone trained, or not: `last_turn_only`, `context_only`."""

_SWITCHES = frozenset({"effort", "budget"})
_CONFIGURATION = frozenset({"type", "effort", "enabled", "budget", "budget_tokens", "max_tokens", "summary"})
"""Last words of names of switches of reasoning, and the keys of a struct that configures it."""

_COUNTS = (
    "importance advantage advantages coefficient coef multiplier upsample upsampling oversample oversampling w iw adv"
)
COUNTS = frozenset([*_COUNTS.split(), "repeat", "repeats", "repetitions"])
"""Words that speak of a weight only where a number stands there."""
_FLAGS = "target targets learning backprop grad grads gradient gradients optimize frozen freeze"
FLAGS = frozenset(_FLAGS.split())
"""Words that do so only where a number or a flag stands there."""
SCALES = frozenset({"weight", "weights", "weighting", "scale", "scaling", *COUNTS})
"""Words of names whose number may be above 1: `train_from: 3` is no weight."""

_ABOUT = (
    "id ids uuid hash count counts num length len tokens type types source sources score scores rating fingerprint "
    "version date time timestamp category categories lang language model generator dataset license level domain "
    "difficulty split origin author index name tags topic"
)
ABOUT = frozenset(_ABOUT.split())
"""Last words of names that speak about the thing, and are not the thing: `system_id`, `tool_count`."""

PLACES = frozenset({"url", "urls", "link", "links", "path", "file", "title"})
"""Last words of names that say where a document is, and not what it says."""

_NEGATIONS = (
    "no not non never without ignore ignored skip skipped exclude excluded drop disable disabled masked unmasked "
    "untrained unsupervised frozen freeze"
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
    if words[-1] in ABOUT or words[0] in ("num", "n") or "_".join(words) in HARMLESS:
        return None
    if words in (("finish", "reason"), ("stop", "reason")):
        return "verdict" if str(value).lower() in CUT else None
    flag = bool(value) if isinstance(value, int) and value in (0, 1) else _as_flag(value)
    bare = words[1:] if words[0] == "is" else words
    if (flag is True and words[-1] in LEFT_OUT_IF_TRUE) or (value is False and words[-1] in LEFT_OUT_IF_FALSE):
        return "verdict"
    if flag is False and len(bare) == 1 and bare[0] in KEPT_IF_TRUE:
        return "verdict"
    if flag is True and ((bare == ("context",) != words) or ("only" in words and _ONE & {*words})):
        return "weight"
    whole = re.split(r"[\W_]+", name.lower())  # "CoT" is one word
    kinds = {KIND_OF[word]: word for word in (*words, *whole) if word in KIND_OF}
    kind = next((kind for kind in KINDS if kind in kinds and _may_be(kind, kinds[kind], words[-1], value)), None)
    return "switch" if kind == "reasoning" and _switches(words[-1], value) else kind


def shape_of(value: Any) -> str | None:
    """Return "chat" for a list of turns of which the assistant says one, "tools" for a list of schemas; else None."""
    if isinstance(value, str):
        if not value.lstrip().startswith("[") or not any(key in value for key in ('"role"', '"from"', '"parameters"')):
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    items = value if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value) else []
    if any(item.get("role", item.get("from")) in ("assistant", "gpt", "model") for item in items):
        return "chat"
    functions = [item["function"] if isinstance(item.get("function"), Mapping) else item for item in items]
    return "tools" if functions and all({"name", "parameters"} <= function.keys() for function in functions) else None


def can_be_weight(name: str, value: Any) -> bool:
    """Return True if a value says how much is trained: a number or a flag, whose name does not say the opposite.

    A `mask` may mean either unless it is a loss_mask, and `train_on_inputs` speaks of another thing than the row.
    """
    words = words_of(name)
    is_clear = "mask" not in words or (words[-1] == "mask" and {*words[-2:-1]} & {"loss", "train", "training"})
    if not isinstance(value, int | float) or not is_clear or "on" in words or NEGATIONS & {*words}:
        return False
    return 0 <= value <= 1 or (value > 1 and bool(SCALES & {*words}))


def dangers(cells: Mapping[str, Any], read: Iterable[str]) -> dict[str, str]:
    """Return {name: kind} of what is not read, and means something.

    A struct means what a mask or a weight in it means: `metadata: {train: false}`.
    """
    unread = cells.keys() - read
    found = {
        name: kind
        for name in unread
        if (kind := kind_of(str(name), cells[name]) or shape_of(cells[name]) or _weight_in(cells[name]))
    }
    order = list(KINDS)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1]), item[0])))


def _may_be(kind: str, word: str, last_word: str, value: Any) -> bool:
    """Whether a value can be of this kind at all; word: that of the name which says so."""
    is_flag = isinstance(value, bool)
    is_number = isinstance(value, int | float) and not is_flag
    match kind:
        case "weight" if word in COUNTS:
            return is_number and value != 1
        case "weight" if word in FLAGS:
            return is_number or _as_flag(value) is not None
        case "weight":
            return True
        case "media":
            return not is_flag and not is_number
        case "prefill" if word in ("partial", "continue"):
            return _as_flag(value) is True
        case "reasoning" if last_word in _SWITCHES:
            return not is_flag
        case "preference" | "prefill" | "routing":
            return not is_number
        case "reasoning" if is_flag:
            return True
        case "chat":
            turns = value if isinstance(value, list) else []
            only_asks = any(isinstance(turn, Mapping) and {"role", "from"} & turn.keys() for turn in turns)
            return shape_of(value) == "chat" or (isinstance(value, list | Mapping) and not only_asks)
        case "context" if last_word in PLACES:
            return False
    return any(
        _as_flag(text) is None for text in texts_in(value)
    )  # "on" and "off" (Nemotron) stand in the system prompt


def _switches(last_word: str, value: Any) -> bool:
    """Return True if what looks like reasoning only says how much of it is wanted: `reasoning_effort: high`."""
    is_configuration = isinstance(value, Mapping) and value.keys() <= _CONFIGURATION
    return isinstance(value, bool) or last_word in _SWITCHES or is_configuration


def _weight_in(value: Any) -> str | None:
    """Return "weight" if a struct has a flag or a number for how much is trained; else None."""
    inside = value.items() if isinstance(value, Mapping) else ()
    return next(
        (
            "weight"
            for key, item in inside
            if kind_of(str(key), item) == "weight"
            and (isinstance(item, bool) or item in (0, 1) or SCALES & {*words_of(str(key))})
        ),
        None,
    )


def texts_in(value: Any) -> Iterator[str]:
    """Every text inside a value that is not blank."""
    if isinstance(value, str):
        yield from [value] if value.strip() else []
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(item)
    elif hasattr(value, "tolist"):
        yield from texts_in(value.tolist())


def _as_flag(value: Any) -> bool | None:
    """Return what a value says as a switch; None if it is none."""
    if isinstance(value, bool):
        return value
    spelt = value.strip().lower() if isinstance(value, str) else ""
    return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}.get(spelt)
