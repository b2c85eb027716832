"""Conversations in the shapes in which people keep them -> messages in one shape.

OpenAI's {role, content, tool_calls} and ShareGPT's {from, value}; arguments and tools as objects or as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_preprocess.exchange import MESSAGE_FIELDS, Exchange, Message, UnusableRowError, encodable, json_text

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
TEXT_KEYS = (*REASONING_KEYS, "tool_call_id", "name")
TEXT_PARTS = ("text", "input_text", "output_text")
SWITCHES = ("train", "trainable", "training", "loss")
WEIGHTS = ("weight", "loss_weight")
OTHER_MASKS = ("loss_mask", "masked", "loss_scale")
"""What sft reads besides. They have several types in one corpus, and no place in the file: such rows are unusable."""


def conversation(
    messages: Any, raw: Mapping[str, Any], *, ability: str = "chat", ground_truth: str | None = None
) -> Exchange:
    """Return the last reply of a conversation and all before it; what comes after it is cut and noted.

    messages:     the conversation, or its JSON text
    raw:          its row, of which system prompt, tools and template options are kept
    ground_truth: what a reply can be compared with; None: the reply itself is the reference for a judge

    Raises UnusableRowError for a conversation without a reply, with a message that is none, or with one that would
    be trained and cannot: a reply that is empty, or to nothing.
    """
    messages = from_json(messages)
    if not isinstance(messages, list) or not messages:
        raise UnusableRowError("no list of messages", f"found {messages!r:.80}")
    notes: dict[str, None] = {}
    cleaned = [_message(message, f"messages[{k}]", notes) for k, message in enumerate(messages)]
    system = raw.get("system")
    if isinstance(system, str) and system.strip():
        if cleaned[0]["role"] != "system":
            cleaned.insert(0, {"role": "system", "content": encodable(system)})
        elif cleaned[0]["content"] != system:
            raise UnusableRowError("a system prompt in a column and another in the messages", f"it is {system!r:.80}")
    roles = [message["role"] for message in cleaned]
    if "assistant" not in roles[1:]:
        raise UnusableRowError("no reply to anything", f"found the roles {', '.join(roles)}")
    end = len(roles) - roles[::-1].index("assistant")
    if end < len(roles):
        notes["messages after the last reply are cut"] = None
    _refuse_what_cannot_be_trained(cleaned[: end - 1])
    *prompt, reply = cleaned[:end]
    answer = _answer(reply)
    asked = [message["content"] for message in prompt if message["role"] == "user"]
    return Exchange(
        prompt=prompt,
        reply=reply,
        question=asked[-1] if asked else "",
        answer=answer,
        ability=ability,
        ground_truth=answer if ground_truth is None else ground_truth,
        style="model" if ground_truth is None else "rule",
        columns=_columns(raw),
        notes=list(notes),
    )


def from_json(value: Any) -> Any:
    """Return the object or list that a text holds, or the value itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _message(raw: Any, where: str, notes: dict[str, None]) -> Message:
    if not isinstance(raw, Mapping):
        raise UnusableRowError("a message is no object", f"{where} is {raw!r:.80}")
    raw = {key: value for key, value in raw.items() if value is not None}  # in Arrow, the keys of its siblings
    if "from" in raw and "role" not in raw:
        raw = _from_sharegpt(raw, where)
    role, calls = raw.get("role"), from_json(raw.get("tool_calls"))
    if role not in ROLES:
        raise UnusableRowError("a message has no role we know", f"{where} has {role!r}, known are {', '.join(ROLES)}")
    message: Message = {"role": role, "content": _content(raw.get("content"), where)}
    if calls:
        message["tool_calls"] = _tool_calls(calls, where)
    if message["content"] is None and not (calls and role == "assistant"):
        raise UnusableRowError("a message has no content", f"{where} is {raw!r:.80}")
    for keys, kind in ((TEXT_KEYS, str), (SWITCHES, bool), (WEIGHTS, int | float)):
        message |= {key: _of_kind(raw[key], kind, f"{where}.{key}") for key in keys if key in raw}
    if masks := [key for key in OTHER_MASKS if raw.get(key) is not None]:
        raise UnusableRowError("a message has a mask; write it as train", f"{where} has {masks}")
    for key in sorted(set(raw) - set(MESSAGE_FIELDS)):
        notes[f"the key {key!r} of messages is left out"] = None
    return message


def _refuse_what_cannot_be_trained(history: list[Message]) -> None:
    """Refuse replies before the last one that would train and cannot; a reply may say itself that it does not train."""
    for k, message in enumerate(history):
        is_trained = not any(message.get(key) in (False, 0) for key in (*SWITCHES, *WEIGHTS))
        if message["role"] != "assistant" or not is_trained:
            continue
        if k == 0:
            raise UnusableRowError("the assistant speaks first, to no prompt", f"messages[0] is {message!r:.80}")
        if not (message["content"] or "").strip() and not any(
            message.get(key) for key in ("tool_calls", *REASONING_KEYS)
        ):
            raise UnusableRowError("a reply is empty", f"messages[{k}] is {message!r:.80}")


def _from_sharegpt(raw: Mapping[str, Any], where: str) -> Message:
    rest = {key: value for key, value in raw.items() if key not in ("from", "value")}
    role, value = SHAREGPT_ROLES.get(str(raw["from"])), raw.get("value")
    if role is None:
        known = ", ".join(SHAREGPT_ROLES)
        raise UnusableRowError(
            "a message is from nobody we know", f"{where} is from {raw['from']!r}, known are {known}"
        )
    if raw["from"] == "function_call":
        calls = from_json(value)
        return {**rest, "role": role, "tool_calls": calls if isinstance(calls, list) else [calls]}
    return {**rest, "role": role, "content": value}


def _content(content: Any, where: str) -> str | None:
    """Return the text, or the joined text of its parts."""
    if isinstance(content, list):
        if not all(
            isinstance(part, Mapping) and part.get("type", "text") in TEXT_PARTS and isinstance(part.get("text"), str)
            for part in content
        ):
            raise UnusableRowError("the content of a message is not text alone", f"{where}.content is {content!r:.80}")
        content = "".join(part["text"] for part in content)
    return None if content is None else _of_kind(content, str, f"{where}.content")


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """As OpenAI writes them, arguments as JSON text: as objects, Arrow would give each the keys of all others."""
    cleaned = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UnusableRowError("a tool call names no function", f"{where} has {call!r:.80}")
        name, arguments = function["name"], function.get("arguments") or {}
        if not isinstance(from_json(arguments), dict):
            raise UnusableRowError("a tool call's arguments are no object", f"{where} has {arguments!r:.80}")
        arguments = encodable(arguments) if isinstance(arguments, str) else json_text(arguments)
        call_id = call.get("id")
        cleaned.append(
            {
                "id": None if call_id is None else str(call_id),
                "type": "function",
                "function": {"name": encodable(name), "arguments": arguments},
            }
        )
    return cleaned


def _of_kind(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind):
        key = where.rpartition(".")[2]
        raise UnusableRowError(f"the {key} of a message is of the wrong kind", f"{where} is {value!r:.80}")
    return encodable(value) if isinstance(value, str) else value


def _answer(reply: Message) -> str:
    """Return the reply as text: its content, or its tool calls as JSON."""
    if reply["content"] and reply["content"].strip():
        return reply["content"]
    if not reply.get("tool_calls"):
        raise UnusableRowError("the last reply is empty", f"it is {reply!r:.80}")
    return json_text([call["function"] for call in reply["tool_calls"]])


def _columns(raw: Mapping[str, Any]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for key, kind in (("tools", list), ("chat_template_kwargs", dict)):
        value = from_json(raw.get(key))
        if not value:
            continue
        if not isinstance(value, kind):
            raise UnusableRowError(f"{key} is no JSON {kind.__name__}", f"it is {value!r:.80}")
        columns[key] = encodable(raw[key]) if isinstance(raw[key], str) else json_text(value)
    if raw.get("enable_thinking") is not None:
        if not isinstance(raw["enable_thinking"], bool):
            raise UnusableRowError("enable_thinking is no boolean", f"it is {raw['enable_thinking']!r:.80}")
        columns["enable_thinking"] = raw["enable_thinking"]
    return columns
