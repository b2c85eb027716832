"""Which columns of a row are read, and as what; and the rule for all others: harmless, or the run stops."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from sft.data.chat.meaning import KINDS, can_be_weight, dangers, shape_of, texts_in, words_of
from sft.data.chat.values import is_empty
from sft.data.rows.cells import parsed, short
from sft.data.types import ConfigMistake

READING = 5
"""Raise when equal rows come to be read in another way: the token cache is filled anew."""

DEFAULT_KEYS = {
    "prompt_key": "question",
    "response_key": "answer",
    "prompt_dict_keys": ("question",),
    "response_dict_keys": ("answer",),
    "messages_key": "messages",
    "tools_key": "tools",
    "enable_thinking_key": "enable_thinking",
    "text_key": "text",
}
"""The keys of conf/data/sft.yaml that name columns. What differs was named by the user, and is insisted on."""

KNOBS = {
    "prompt_key": "data.prompt_key",
    "response_key": "data.response_key",
    "messages_key": "data.multiturn.messages_key",
    "text_key": "data.text_key",
    "tools_key": "data.multiturn.tools_key",
    "enable_thinking_key": "data.multiturn.enable_thinking_key",
    "system_key": "data.columns.system",
    "history_key": "data.columns.history",
    "context_key": "data.columns.context",
    "reasoning_key": "data.columns.reasoning",
    "weight_key": "data.columns.weight",
}

TEMPLATE_KWARGS_KEY = "chat_template_kwargs"
"""Column of a row's own variables for the chat template: a struct, or a JSON object as text."""

PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input")
RESPONSES = ("response", "answer", "completion", "output", "solution")
"""Well-known names of columns that ask and that answer."""

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
HISTORY_COLUMNS = ("history",)
TOOLS_COLUMNS = ("functions",)
WEIGHT_COLUMNS = ("weight", "loss_weight", "sample_weight")
"""Columns that any chat format reads where they are there; of tools besides data.multiturn.tools_key."""

WAYS_IN = {
    "system": "data.columns.system",
    "tools": "data.columns.tools",
    "history": "data.columns.history",
    "chat": "data.columns.messages",
    "weight": "data.columns.weight",
    "reasoning": "data.columns.reasoning",
    "switch": "data.columns.enable_thinking",
    "context": "data.columns.context",
}
"""By kind of meaning (meaning.KINDS), the key that has a column read as such."""


@dataclass(frozen=True)
class Columns:
    """Say where a row keeps what: its format, and which column holds the prompt, the answer, the tools and so on.

    format:       a name of FORMATS, or "text"; "auto" until `recognise` has seen the file
    guessed:      those of prompt_key and response_key that the user did not name: well-known names were found instead
    roles:        (their name, ours) of who speaks
    message_keys: (our name, theirs) of the keys of a message
    """

    format: str
    prompt_key: str
    response_key: str
    prompt_dict_keys: tuple[str, ...]
    response_dict_keys: tuple[str, ...]
    multiturn: bool
    messages_key: str
    tools_key: str
    enable_thinking_key: str
    text_key: str
    guessed: tuple[str, ...] = ()
    system_key: str | None = None
    history_key: str | None = None
    context_key: str | None = None
    reasoning_key: str | None = None
    weight_key: str | None = None
    ignored: tuple[str, ...] = ()
    ignored_message_keys: tuple[str, ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    message_keys: tuple[tuple[str, str], ...] = ()

    def fingerprint(self) -> str:
        return json.dumps([READING, asdict(self)], sort_keys=True)

    def names(self, key: str) -> bool:
        """Return True if the user named this one ("prompt_key", ...): then nothing else takes its place."""
        return getattr(self, key) not in (None, DEFAULT_KEYS.get(key))

    def named_columns(self) -> Iterator[tuple[str, str]]:
        """Yield (knob, column) for each column that the user named and that a row may lack."""
        of_format = ("prompt_key", "response_key", "messages_key", "text_key")  # `recognise` looks for these
        for field in fields(self):
            if field.name in KNOBS and field.name not in of_format and self.names(field.name):
                yield KNOBS[field.name], getattr(self, field.name)

    @cached_property
    def used(self) -> dict[str, str]:
        """Return what each column beside those of the messages is read as: {"system_prompt": "system", ...}."""
        if self.format == "text":
            return dict.fromkeys(_one_of(self.weight_key, WEIGHT_COLUMNS), "weight")
        return {
            **dict.fromkeys(_one_of(self.system_key, SYSTEM_COLUMNS), "system"),
            **dict.fromkeys(_one_of(self.history_key, HISTORY_COLUMNS), "history"),
            **dict.fromkeys(_one_of(self.weight_key, WEIGHT_COLUMNS), "weight"),
            **dict.fromkeys([self.tools_key, *(() if self.names("tools_key") else TOOLS_COLUMNS)], "tools"),
            **dict.fromkeys([key for key in (self.context_key,) if key], "context"),
            **dict.fromkeys([key for key in (self.reasoning_key,) if key], "reasoning"),
            self.enable_thinking_key: "enable_thinking",
            TEMPLATE_KWARGS_KEY: TEMPLATE_KWARGS_KEY,
        }

    def those_used_as(self, use: str) -> list[str]:
        """Return the columns that are read as this, the first choice first."""
        return [column for column, as_what in self.used.items() if as_what == use]


def _one_of(named: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    return known if named is None else (named,)


def meaning_left_out(cells: Mapping[str, Any], columns: Columns, read: frozenset[str]) -> dict[str, str]:
    """Return {column: kind} of the columns that nobody reads and that mean something.

    read: those that make the messages. Whoever asked for the chosen replies has said what is to be with the others,
    and whoever named the columns of the conversation, with other conversations.
    """
    if cells.keys() <= read:
        return {}
    found = dangers(cells, read | columns.used.keys())
    if "prompt" in found and found["prompt"] == "chat":
        del found["prompt"]  # of RL data, which may have earlier turns; the messages hold it, too
    asked = {word for key in read for word in words_of(key)}
    settled = {"preference"} if "chosen" in asked else set[str]()
    of_format = ("prompt_key", "response_key", "messages_key", "text_key")
    if any(columns.names(key) and getattr(columns, key) in read for key in of_format) or not read & cells.keys():
        settled.add("chat")
    elif columns.format == "text":
        found |= dict.fromkeys(_replies_beside(cells, columns.text_key), "pair")
    elif columns.format not in ("messages", "sharegpt"):
        found |= dict.fromkeys(_other_pairs(cells, read), "pair")
        found |= dict.fromkeys(_options_beside(cells, read), "context")
    elif _only_asks(cells.get(columns.messages_key)):
        found |= {name: "pair" for name in RESPONSES if any(texts_in(cells.get(name)))}
    if columns.format != "text":
        found |= _inside_structs(cells, read | columns.used.keys() | found.keys())
    return {name: kind for name, kind in found.items() if kind not in settled}


def _other_pairs(cells: Mapping[str, Any], read: frozenset[str]) -> list[str]:
    """Return the well-known columns of questions and replies that say another thing than the pair that is read."""
    others = [name for name in (*PROMPTS, *RESPONSES, "inputs") if name in cells and name not in read]
    if not others:
        return []
    texts = {name: "\n".join(texts_in(cells[name])) for name in (*others, *(read & cells.keys()))}
    asked = [texts[name] for name in PROMPTS if name in read and texts.get(name)]
    said = {texts[name] for name in read & texts.keys()}
    return [
        name
        for name in others
        # The whole prompt as it was rendered for somebody, or a copy.
        if texts[name] and texts[name] not in said and not (asked and all(text in texts[name] for text in asked))
    ]


OPTIONS = re.compile(r"[A-H]|[a-h]|op[a-h]|(opt|option|choice)[ _-]?([A-Ha-h]|\d)")
"""Names of columns that each hold one of the answers to choose from."""


def _options_beside(cells: Mapping[str, Any], read: frozenset[str]) -> list[str]:
    """Return the columns of a multiple choice whose answers are not in what is read: the question lacks them."""
    options = [name for name in cells if name not in read and OPTIONS.fullmatch(name) and not is_empty(cells[name])]
    if len(options) < 2:
        return []
    asked = "\n".join(texts_in([cells.get(name) for name in read]))
    return options if any(str(cells[name]) not in asked for name in options) else []


def _only_asks(turns: Any) -> bool:
    """Return True for a conversation in which nobody but the system and the user speaks."""
    turns = parsed(turns)
    listed = turns if isinstance(turns, list) else []
    speakers = [turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None for turn in listed]
    return bool(speakers) and all(speaker in ("system", "developer", "user", "human") for speaker in speakers)


def _inside_structs(cells: Mapping[str, Any], judged: Iterable[str]) -> dict[str, str]:
    """Return {column: kind} of structs that hold the system prompt or tools: `metadata: {system_prompt: ...}`.

    What is a copy of something that is read is harmless.
    """
    found: dict[str, str] = {}
    for name in cells.keys() - judged:
        for key, value in cells[name].items() if isinstance(cells[name], Mapping) else ():
            is_system = words_of(str(key)) in (("system",), ("system", "prompt"), ("system", "message"))
            kind = "system" if is_system and isinstance(value, str) and value.strip() else shape_of(value)
            if kind in ("system", "tools"):
                said = {text for read in judged for text in texts_in(cells.get(read))}
                if not said.issuperset(texts_in(value)):
                    found[name] = kind
    return found


def _replies_beside(cells: Mapping[str, Any], text_key: str) -> list[str]:
    """Return the well-known columns of replies whose words the text does not hold: the text may be the question."""
    whole = "\n".join(texts_in(cells[text_key]))
    replies = {name: "\n".join(texts_in(cells[name])) for name in RESPONSES if name in cells and name != text_key}
    return [name for name, said in replies.items() if said and said not in whole]


def refuse_unread(cells: Mapping[str, Any], where: str, columns: Columns, read: frozenset[str]) -> None:
    """Raise ConfigMistake naming every column that nobody reads and that would change the samples if it were read."""
    if not (found := meaning_left_out(cells, columns, read)):
        return
    told = "; ".join(f"{name!r} looks like {KINDS[kind]} ({short(cells[name])})" for name, kind in found.items())
    ways_in = " ".join(f"{knob}={name}" for knob, name in _ways_in(found, cells, columns).items())
    way_in = f"Have them read by {ways_in}, or leave" if ways_in else "Leave"
    raise ConfigMistake(
        f"{where} has columns that nobody reads and that mean something: {told}. {way_in} them out by "
        f"data.ignore_columns=[{','.join(found)}]."
    )


def _ways_in(found: Mapping[str, str], cells: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """Return the key for each kind of meaning, and the first column of that kind."""
    ways: dict[str, str] = {}
    if columns.format in ("text", "messages", "sharegpt") and "pair" in found.values():
        ways["data.prompt_key"] = columns.text_key if columns.format == "text" else columns.messages_key
    for name, kind in found.items():
        if kind == "pair":
            ways.setdefault("data.prompt_key" if name in (*PROMPTS, "inputs") else "data.response_key", name)
        elif kind in WAYS_IN and columns.format != "text" and _is_read_as(kind, name, cells[name]):
            ways.setdefault(WAYS_IN[kind], name)
    return ways


def _is_read_as(kind: str, name: str, value: Any) -> bool:
    """Return True if the key of this kind could read the value."""
    match kind:
        case "weight":
            return can_be_weight(name, value)
        case "switch":
            return isinstance(value, bool)
        case "system":
            return isinstance(value, str)
        case "tools":
            return not isinstance(value, Mapping) or shape_of([value]) == "tools"
        case "reasoning" | "context":
            return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    return True
