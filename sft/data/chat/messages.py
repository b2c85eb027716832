"""The messages of a row, made fit for a chat template: one spelling for what files write in many ways.

Files fill absent fields with null, OpenAI writes arguments as JSON text, multimodal files cut text into parts.
Templates meet these in silence: they print `None`, encode twice, or render nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sft.data.chat.calls import RESULTS, clean_tool_call, opened, refuse_non_json, shown
from sft.data.chat.meaning import KINDS, can_be_weight, dangers
from sft.data.chat.values import is_empty, plain
from sft.data.chat.weights import DETAILS, WEIGHT_KEYS
from sft.data.types import ConfigMistake
from sft.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names of the reasoning, the one that counts first (transformers' order)."""

THOUGHTS = ("thought", "thoughts", "thinking_content", "thinking_blocks", "reasoning_text", "reasoning_details")
"""Other names of the reasoning: text, or a list of parts, of which no template knows. They become REASONING_KEYS[0]."""

WORDS = ("text", "value", "message", "parts", "refusal")
"""Where a message may have words besides its content."""

READ_KEYS = frozenset(
    {"role", "content", "tool_calls", "tool_call_id", "name", *REASONING_KEYS, *THOUGHTS, *WEIGHT_KEYS, *DETAILS}
)
"""The keys of a message that we read. Others are harmless, or dangerous (meaning.py), or read by the chat template."""

TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHT_PARTS = ("thinking", "reasoning", "reasoning.text")
TEXT_KEYS = ("text", "content", "value", "input_text", "output_text")
"""Types of the parts of a content, and of the thoughts among them; and where a part has its text."""

RESULT_TAGS = ("<tool_response>", "</tool_response>")
"""What templates of Hermes' kind write around a result, and what rows of its kind have in it already."""

RESULT_ROLES = ("tool", "function", "ipython", "observation")
"""Who brings the result of a call."""

NOT_TEXT = (
    "Only text is trained: take pictures and sound out, write calls as tool_calls and their results as messages of the "
    "role tool, or leave such rows out by data.bad_rows=drop."
)

Part = tuple[bool, str]
"""Whether it is a thought, and its words."""


def clean_messages(messages: Sequence[Mapping[str, Any]], where: str, template: str = "") -> list[dict[str, Any]]:
    """Return copies with plain text contents and object arguments, without nulls and loss weights.

    A message has a role we know and a content; that of the assistant's tool calls may be left out, and is "" then.
    template: whose keys of a message count as read
    Raises InputError naming `where` and the message; ConfigMistake for a key that means something and is not read.
    """
    read = READ_KEYS | keys_read_by(template)
    cleaned = [_clean_message(message, f"{where}: messages[{k}]", read) for k, message in enumerate(messages)]
    return [_unwrapped(message) for message in cleaned] if RESULT_TAGS[0] in template else cleaned


@lru_cache(maxsize=64)
def keys_read_by(template: str) -> frozenset[str]:
    """Return the names that a template takes out of messages (and other objects): `message.name`, `message['name']`."""
    found = re.findall(r"\.([a-z_]\w*)(?!\w*\()|\[['\"](\w+)['\"]\]|['\"](\w+)['\"] in \w+", template)
    return frozenset(name for names in found for name in names if name)


def is_silent(message: Any) -> bool:
    """Whether this, before cleaning, is an assistant's message that says nothing: no words, thoughts or calls."""
    if not isinstance(message, Mapping) or message.get("role") != "assistant" or message.get("tool_calls"):
        return False
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        return False
    if any(not is_empty(message.get(key)) for key in (*REASONING_KEYS, *THOUGHTS)):
        return False
    parts = parts_of(content)
    if parts is None or any(words.strip() for _, words in parts):
        return False
    return not _unread(message, READ_KEYS)  # it may speak in a key that nobody reads: a mistake of the configuration


def is_data(message: Any) -> bool:
    """Whether this, before cleaning, is the result of a call as an object or a list, which becomes JSON text.

    A list of parts, each with its `type`, is text in pieces.
    """
    if not isinstance(message, Mapping) or message.get("role") not in RESULT_ROLES:
        return False
    content = message.get("content")
    if isinstance(content, list):
        return not content or not all(isinstance(part, Mapping) and "type" in part for part in content)
    return isinstance(content, Mapping)


def _clean_message(message: Mapping[str, Any], where: str, read: frozenset[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"{where} must be an object with role and content, found {message!r}.")
    cleaned = {
        # Arguments and results may be null, and then mean it.
        key: value
        if type(value) is str
        else plain(value, drop_nulls=not (key == "tool_calls" or (key == "content" and is_data(message))))
        for key, value in message.items()
        if value is not None
    }
    if not cleaned.keys() <= _NO_QUESTION:
        _refuse_unread(cleaned, where, read)
    for key in (*WEIGHT_KEYS, *DETAILS):
        cleaned.pop(key, None)
    role = cleaned.get("role")
    if role not in ROLES:
        raise InputError(f"{where} {_of_no_role(role, cleaned)}")
    _gather_reasoning(cleaned, where)
    if is_data(cleaned):
        cleaned["content"] = _as_json(cleaned["content"], where)
    elif "content" in cleaned:
        thought, cleaned["content"] = _thought_and_text(cleaned["content"], role, where)
        if thought.strip():
            _refuse_another(thought, cleaned, where)
            cleaned[REASONING_KEYS[0]] = thought
        if role == "assistant":
            _settle_tags(cleaned, where)
    calls = opened(cleaned.pop("tool_calls", None), f"{where}.tool_calls")
    if calls not in (None, "", "null", [], {}):
        calls = [calls] if isinstance(calls, dict) else calls
        if not isinstance(calls, list):
            raise InputError(f"{where}.tool_calls must be a list, found {calls!r}.")
        if role != "assistant":
            raise InputError(f"{where} ({role}) calls tools, which only the assistant does; found {calls!r}.")
        cleaned["tool_calls"] = [clean_tool_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(calls)]
        cleaned.setdefault("content", "")  # many templates read it without asking whether it is there
    elif "content" not in cleaned:
        raise InputError(f"{where} ({role}) has no content{' and no tool_calls' if role == 'assistant' else ''}.")
    if not cleaned.keys() <= _NO_QUESTION:
        refuse_non_json(cleaned, where)
    return cleaned


def _unwrapped(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message without the tags that the template writes around a result."""
    content = message["content"].strip()
    begin, end = RESULT_TAGS
    if message["role"] not in RESULT_ROLES or not (content.startswith(begin) and content.endswith(end)):
        return message
    inside = content.removeprefix(begin).removesuffix(end)
    return message if begin in inside else {**message, "content": inside.strip("\n")}


_NO_QUESTION = frozenset({"role", "content"})


def _refuse_unread(message: Mapping[str, Any], where: str, read: frozenset[str]) -> None:
    """Raise ConfigMistake for the keys of a message that nobody reads and that would change the sample."""
    if not (found := _unread(message, read)):
        return
    told = "; ".join(f"{key!r} looks like {KINDS[kind]} ({shown(message[key])})" for key, kind in found.items())
    readable = {key: kind for key, kind in found.items() if kind != "weight" or can_be_weight(key, message[key])}
    readable = {key: kind for key, kind in readable.items() if kind == "weight" or not isinstance(message[key], bool)}
    readable = {key: kind for key, kind in readable.items() if key not in RESULTS}  # which only results have
    ways_out = [f"data.message_keys.{_FIELD_OF[kind]}={key}" for key, kind in readable.items() if kind in _FIELD_OF]
    way_in = f"Have them read by {', '.join(ways_out)}, or leave" if ways_out else "Leave"
    raise ConfigMistake(
        f"{where} has keys that nobody reads and that mean something: {told}. "
        f"{way_in} them out by "
        f"data.ignore_message_keys=[{','.join(found)}]."
    )


def _unread(message: Mapping[str, Any], read: frozenset[str]) -> dict[str, str]:
    """Return {key: kind} of the keys of a message that nobody reads and that mean something."""
    found = {key: kind for key, kind in dangers(message, READ_KEYS).items() if key not in read or kind == "media"}
    words = (*WORDS, *RESULTS) if message.get("role") in RESULT_ROLES else WORDS
    others = [key for key in words if key not in read and not is_empty(message.get(key))]
    found |= {key: "words" for key in others if message[key] != message.get("content")}
    return found | ({"label": "weight"} if isinstance(message.get("label"), int) and "label" not in found else {})


_FIELD_OF = {"reasoning": "reasoning", "tools": "tool_calls", "weight": "weight", "words": "content"}
"""The field of data.message_keys by which a key of this kind is read."""


def _gather_reasoning(message: dict[str, Any], where: str) -> None:
    """Make the reasoning text, and give that of another name the first name of all."""
    for key in REASONING_KEYS:
        if key in message:
            parts = parts_of(stated := message[key])
            if parts is None:
                raise InputError(f"{where}.{key} must be text, or a list of parts of text; found {stated!r}.")
            message[key] = "".join(words for _, words in parts)
            if message[key].strip() and message["role"] != "assistant":
                raise InputError(
                    f"{where}.{key} ({message['role']}) is a thought, and only the assistant's are read; found "
                    f"{message[key][:80]!r}. data.ignore_message_keys=[{key}] leaves it out."
                )
    for key in THOUGHTS:
        stated = message.pop(key, None)
        if is_empty(stated):
            continue
        parts = parts_of([stated] if isinstance(stated, Mapping) else stated)
        if parts is None or message["role"] != "assistant":
            raise InputError(
                f"{where}.{key} ({message['role']}) must be the assistant's thought, text or a list of parts of text; "
                f"found {stated!r}. data.ignore_message_keys=[{key}] leaves it out."
            )
        thought = "".join(words for _, words in parts)
        _refuse_another(thought, message, where, stated_by=key)
        if not any(message.get(name, "").strip() for name in REASONING_KEYS):
            message[REASONING_KEYS[0]] = thought


def _settle_tags(message: dict[str, Any], where: str) -> None:
    """Take a thought between tags out of the content where a key says the same. Raises InputError where they differ."""
    content = message["content"].lstrip()
    if not content.startswith("<think>"):
        return
    inside, closed, rest = content.removeprefix("<think>").partition("</think>")
    if closed and any(message.get(key, "").strip() for key in REASONING_KEYS):
        _refuse_another(inside, message, where, stated_by="<think> in its content")
        message["content"] = rest.lstrip()


def _thought_and_text(content: Any, role: str, where: str) -> tuple[str, str]:
    """Return the thoughts and the words of a content, text or parts.

    Only the assistant thinks, and before it speaks.
    """
    _check_parts(content, where)
    parts = parts_of(content)
    if parts is None or (role != "assistant" and any(is_thought for is_thought, _ in parts)):
        expected = 'text or a list of {"type": "text"} parts' + ", or thoughts before them" * (role == "assistant")
        way_out = "Write a result that is data as JSON text." if role in RESULT_ROLES else NOT_TEXT
        raise InputError(f"{where}.content must be {expected}; found {content!r}. {way_out}")
    said = [is_thought for is_thought, words in parts if words.strip()]
    if said != sorted(said, reverse=True):
        raise InputError(
            f"{where}.content thinks behind its words, where no chat template has a place for it; found {content!r}. "
            "Put the thought first, or into a message of its own with the words that follow it."
        )
    thought, text = ("".join(words for is_thought, words in parts if is_thought == wanted) for wanted in (True, False))
    return thought, text


def _check_parts(content: Any, where: str) -> None:
    """Raise ConfigMistake for a part of text with a key that means something and that nobody reads."""
    for n, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, Mapping) or part.get("type") not in (*TEXT_PARTS, *THOUGHT_PARTS):
            continue
        if found := dangers(part, ("type", *TEXT_KEYS, *THOUGHT_PARTS, *WEIGHT_KEYS)):
            told = "; ".join(f"{key!r} looks like {KINDS[kind]} ({shown(part[key])})" for key, kind in found.items())
            raise ConfigMistake(
                f"{where}.content[{n}]: {told}, and a part has none of its own. Give it to the message, or take it out."
            )


def _refuse_another(
    thought: str, message: Mapping[str, Any], where: str, *, stated_by: str = "a part of its content"
) -> None:
    others = [key for key in REASONING_KEYS if message.get(key, "").strip() not in ("", thought.strip())]
    if others:
        raise InputError(
            f"{where} states its reasoning more than once, and differently: {stated_by} and "
            f"{' and '.join(others)}; keep one."
        )


def parts_of(content: Any) -> list[Part] | None:
    """Return the parts of a content, a text being one; None where something is neither words nor thoughts."""
    if isinstance(content, str):
        return [(False, content)]
    parts = [_part(part) for part in content] if isinstance(content, list) else [None]
    read = [part for part in parts if part is not None]
    return read if len(read) == len(parts) else None


def _part(part: Any) -> Part | None:
    if isinstance(part, str):
        return False, part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind is None and isinstance(part, Mapping) and len(part) == 1 and isinstance(part.get("text"), str):
        kind = "text"  # as Gemini's and Bedrock's interfaces write it
    if kind not in (*TEXT_PARTS, *THOUGHT_PARTS):
        return None
    keys = TEXT_KEYS if kind in TEXT_PARTS else (*THOUGHT_PARTS, *TEXT_KEYS)
    stated = [part[key] for key in keys if part.get(key) is not None]
    if not stated:  # Arrow's null; but words of another key are not to be lost
        return None if any(not is_empty(value) for key, value in part.items() if key != "type") else (False, "")
    words = _words(stated[0]) if all(text == stated[0] for text in stated) else None
    return None if words is None else (kind in THOUGHT_PARTS, words)


def _words(value: Any) -> str | None:
    """Return the text, or that of a list of parts of text; None for anything else."""
    parts = parts_of(value)
    if parts is None or any(is_thought for is_thought, _ in parts):
        return None
    return "".join(words for _, words in parts)


def _as_json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}.content is data that JSON cannot say ({error}): {value!r}. Write it as text."
        ) from error


def _of_no_role(role: Any, message: Mapping[str, Any]) -> str:
    if role is None:
        return (
            f"has no role; found {sorted(message)[:12]}, expected role and content. data.message_keys.role=NAME says "
            "which key is the role, data.message_keys.content=NAME which the words."
        )
    return (
        f"has the role {role!r}; expected one of {', '.join(ROLES)}. data.roles.assistant=[{role}] (or user, system, "
        "tool) says who that is."
    )
