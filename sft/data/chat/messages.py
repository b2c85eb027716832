"""The messages of a row, made fit for a chat template: one spelling for what files write in many ways.

Files fill absent fields with null, OpenAI writes arguments as JSON text, multimodal files cut text into parts.
Templates meet these in silence: they print `None`, encode twice, or render nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft.data.chat.weights import WEIGHT_KEYS
from sft.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names of the reasoning, the one that counts first (transformers' order)."""

TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHT_PARTS = ("thinking", "reasoning")
"""Types of the parts of a content, and of the thoughts among them."""

RESULT_ROLES = ("tool", "function", "ipython", "observation")
"""Who brings the result of a call."""

NOT_TEXT = "Take pictures and sound out (only text is trained), or leave such rows out by data.bad_rows=drop."

Part = tuple[bool, str]
"""Whether it is a thought, and its words."""


def clean_messages(messages: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """Copies with plain text contents and object arguments, without nulls and loss weights.

    A message has a role we know and a content; that of the assistant's tool calls may be left out, and is "" then.
    Raises InputError naming `where` and the message.
    """
    return [_clean_message(message, f"{where}: messages[{k}]") for k, message in enumerate(messages)]


def clean_tools(tools: Sequence[Mapping[str, Any]] | str | None, where: str) -> list[dict[str, Any]] | None:
    """The tools' schemas, from a list or from JSON text; None if there are none."""
    if not tools:
        return None
    schemas: Any = _from_json(tools, f"{where}: tools") if isinstance(tools, str) else tools
    if not isinstance(schemas, list) or not all(isinstance(schema, dict) for schema in schemas):
        raise InputError(f"{where}: tools must be a list of JSON schemas, or that list as JSON text; found {tools!r}.")
    return schemas or None


def is_silent(message: Any) -> bool:
    """Whether this, before cleaning, is an assistant's message that says nothing: no words, thoughts or calls."""
    if not isinstance(message, Mapping) or message.get("role") != "assistant" or message.get("tool_calls"):
        return False
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        return False
    if any((_words(message.get(key)) or "").strip() for key in REASONING_KEYS):
        return False
    parts = _parts(content)
    return parts is not None and not any(words.strip() for _, words in parts)


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


def _clean_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"{where} must be an object with role and content, found {message!r}.")
    cleaned = {
        # Arguments and results may be null, and then mean it.
        key: value if key == "tool_calls" or (key == "content" and is_data(message)) else without_nulls(value)
        for key, value in message.items()
        if value is not None
    }
    for key in WEIGHT_KEYS:
        cleaned.pop(key, None)
    role = cleaned.get("role")
    if role not in ROLES:
        raise InputError(f"{where} has the role {role!r}; expected one of {', '.join(ROLES)}.")
    for key in REASONING_KEYS:
        if key in cleaned:
            cleaned[key] = _words(stated := cleaned[key])
            if cleaned[key] is None:
                raise InputError(f"{where}.{key} must be text, or a list of parts of text; found {stated!r}.")
    if is_data(cleaned):
        cleaned["content"] = _as_json(cleaned["content"], where)
    elif "content" in cleaned:
        thought, cleaned["content"] = _thought_and_text(cleaned["content"], role, where)
        if thought.strip():
            _refuse_another(thought, cleaned, where)
            cleaned[REASONING_KEYS[0]] = thought
    if role == "assistant" and cleaned.get("tool_calls"):
        if not isinstance(cleaned["tool_calls"], list):
            raise InputError(f"{where}.tool_calls must be a list, found {cleaned['tool_calls']!r}.")
        cleaned["tool_calls"] = [
            _clean_tool_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(cleaned["tool_calls"])
        ]
        cleaned.setdefault("content", "")  # many templates read it without asking whether it is there
    elif "content" not in cleaned:
        raise InputError(f"{where} ({role}) has no content{' and no tool_calls' if role == 'assistant' else ''}.")
    return cleaned


def _clean_tool_call(call: Any, where: str) -> dict[str, Any]:
    call = _present(call)
    function = _present(call.get("function", call)) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError(f"{where} must name a function, found {call!r}.")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # As text, some templates print them as they are and others encode them once more, as a JSON string.
        arguments = _from_json(arguments, f"{where}: arguments") if arguments.strip() not in ("", "null") else {}
    if not isinstance(arguments, dict):
        raise InputError(f"{where}: arguments must be an object, found {arguments!r}.")
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _thought_and_text(content: Any, role: str, where: str) -> tuple[str, str]:
    """The thoughts and the words of a content, text or parts. Only the assistant thinks, and before it speaks."""
    parts = _parts(content)
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


def _refuse_another(thought: str, message: Mapping[str, Any], where: str) -> None:
    others = [key for key in REASONING_KEYS if message.get(key, "").strip() not in ("", thought.strip())]
    if others:
        raise InputError(
            f"{where} states its reasoning more than once, and differently: a part of its content and "
            f"{' and '.join(others)}; keep one."
        )


def _parts(content: Any) -> list[Part] | None:
    """The parts of a content, a text being one; None where something is neither words nor thoughts."""
    if isinstance(content, str):
        return [(False, content)]
    parts = [_part(part) for part in content] if isinstance(content, list) else [None]
    read = [part for part in parts if part is not None]
    return read if len(read) == len(parts) else None


def _part(part: Any) -> Part | None:
    if isinstance(part, str):
        return False, part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in (*TEXT_PARTS, *THOUGHT_PARTS):
        return None
    keys = ("text",) if kind in TEXT_PARTS else (*THOUGHT_PARTS, "text")
    words = _words(next((part[key] for key in keys if part.get(key) is not None), ""))
    return None if words is None else (kind in THOUGHT_PARTS, words)


def _words(value: Any) -> str | None:
    """The text, or that of a list of parts of text; None for anything else."""
    parts = _parts(value)
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


def _present(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value


def without_nulls(value: Any) -> Any:
    """The value without the dict keys that hold None, at any depth."""
    if isinstance(value, str):  # nearly every one
        return value
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def _from_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error}): {text[:80]!r}.") from error
