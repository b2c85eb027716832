"""The messages of a row, made fit for a chat template: one spelling for what files write in many ways.

Files fill absent fields with null, OpenAI writes arguments as JSON text, multimodal files cut text into parts.
Templates meet these in silence: they print `None`, encode twice, or render nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft.data.weights import WEIGHT_KEYS
from sft.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names of the reasoning, the one that counts first (transformers' order)."""


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
    if any(isinstance(said := message.get(key), str) and said.strip() for key in REASONING_KEYS):
        return False
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text", "") if isinstance(part, Mapping) else None for part in parts]
    return all(isinstance(text, str) and not text.strip() for text in texts)


def _clean_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"{where} must be an object with role and content, found {message!r}.")
    cleaned = {
        key: value if key == "tool_calls" else without_nulls(value)  # arguments may be null, and then mean it
        for key, value in message.items()
        if value is not None
    }
    for key in WEIGHT_KEYS:
        cleaned.pop(key, None)
    role = cleaned.get("role")
    if role not in ROLES:
        raise InputError(f"{where} has the role {role!r}; expected one of {', '.join(ROLES)}.")
    if "content" in cleaned:
        cleaned["content"] = _text(cleaned["content"], where)
    if role == "assistant" and cleaned.get("tool_calls"):
        if not isinstance(cleaned["tool_calls"], list):
            raise InputError(f"{where}.tool_calls must be a list, found {cleaned['tool_calls']!r}.")
        cleaned["tool_calls"] = [
            _clean_tool_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(cleaned["tool_calls"])
        ]
        cleaned.setdefault("content", "")  # many templates read it without asking whether it is there
    elif "content" not in cleaned:
        raise InputError(f"{where} ({role}) has no content{' and no tool_calls' if role == 'assistant' else ''}.")
    for key in REASONING_KEYS:
        if not isinstance(cleaned.get(key, ""), str):
            raise InputError(f"{where}.{key} must be text, found {cleaned[key]!r}.")
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


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text", ""), str)
        for part in content
    ):
        return "".join(part.get("text", "") for part in content)
    raise InputError(f'{where}.content must be text or a list of {{"type": "text"}} parts, found {content!r}.')


def _present(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value


def without_nulls(value: Any) -> Any:
    """The value without the dict keys that hold None, at any depth."""
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
