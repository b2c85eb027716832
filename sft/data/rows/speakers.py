"""Turns as files write them -> messages: who speaks (`role`), and what (`content`, `tool_calls`)."""

from __future__ import annotations

from typing import Any

from sft.data.chat.messages import ROLES
from sft.data.chat.values import is_empty
from sft.data.rows.cells import Cells, few, parsed, present, short
from sft.data.rows.columns import Columns
from sft.data.types import ConfigMistake, RowError

Messages = list[dict[str, Any]]

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
MORE_ROLES = {**SHAREGPT_ROLES, "tool_call": "assistant", "tool_response": "tool"}
CALLERS = ("function_call", "tool_call")
"""Speakers, of whose words the assistant's tool calls are made."""


ROW_KEYS = frozenset({"tools", "functions", "function_call"})
"""The keys of a message that are read before it is cleaned."""


def turns_in(cells: Cells, key: str, where: str) -> list[Any]:
    """Return the list of turns of a column, or of its JSON text; each may be JSON text of its own (datasets' Json
    type).
    """
    turns = parsed(present(cells, key, where, "data.multiturn.messages_key"))
    if not isinstance(turns, list) or not turns:
        is_repr = isinstance(turns, str) and turns.lstrip()[:2] in ("[{", "['") and "'" in turns[:40]
        way_out = " It is a list as Python prints it; write the column by json.dumps." if is_repr else ""
        raise RowError(f"{where}: column {key!r} holds {short(turns)}, expected a list of messages.{way_out}")
    return turns


def messages_of(turns: list[Any], where: str, column: str, columns: Columns) -> Messages:
    """Convert OpenAI's {role, content, ...} to messages; its older `function_call` becomes a tool call."""
    messages: Messages = []
    for k, turn in enumerate(turns):
        message = _as_ours(turn, f"{where}: {column}[{k}]", columns)
        if not isinstance(message, dict):
            messages.append(message)
            continue
        if "role" in message and "value" in message and "content" not in message:
            raise ConfigMistake(
                f"{where}: {column}[{k}] has no 'content'; found {few(message)}. Say where its words are by "
                "data.message_keys.content=value."
            )
        if message.get("function_call") and not message.get("tool_calls"):
            message = {**message, "tool_calls": [{"type": "function", "function": message["function_call"]}]}
            del message["function_call"]
        role = message.get("role")
        ours = dict(columns.roles).get(role) if isinstance(role, str) else None
        if ours is None and isinstance(role, str) and role not in ROLES:
            ours = MORE_ROLES.get(role)
        if ours is not None:
            _add(messages, message, role, ours, f"{where}: {column}[{k}]")
        else:
            messages.append(message)
    return messages


def messages_of_sharegpt(turns: list[Any], where: str, column: str, columns: Columns) -> Messages:
    """Convert ShareGPT's {from, value} to messages. data.roles adds names of speakers to the well-known ones.

    The words may stand in `content`, too.
    """
    messages: Messages = []
    known = {**MORE_ROLES, **dict(columns.roles)}
    for k, turn in enumerate(turns):
        turn = _as_ours(turn, f"{where}: {column}[{k}]", columns)
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in known:
            raise RowError(
                f"{where}: {column}[{k}] is from {short(speaker)}, expected one of {', '.join(known)}; "
                "data.roles says who else speaks."
            )
        if "value" not in turn and "content" not in turn:
            raise RowError(f"{where}: {column}[{k}] has no 'value'; found {few(turn)}, expected from and value.")
        turn = {**turn, "content": turn["value"]} if "value" in turn else dict(turn)
        turn.pop("value", None)
        del turn["from"]
        _add(messages, turn, speaker, known[speaker], f"{where}: {column}[{k}]")
    return messages


def tools_lifted_from(messages: Messages, where: str) -> Any:
    """Take the tools out of the one message that holds them, and return them; None if no message does."""
    holders = [
        (k, key)
        for k, message in enumerate(messages)
        if isinstance(message, dict)
        for key in ("tools", "functions")
        if key in message and not is_empty(message[key])
    ]
    if not holders:
        return None
    if len(holders) > 1:
        told = " and ".join(f"messages[{k}].{key}" for k, key in holders)
        raise RowError(f"{where}: {told} hold tools, expected one list for the whole conversation; merge them.")
    ((k, key),) = holders
    tools = messages[k][key]
    messages[k] = {name: value for name, value in messages[k].items() if name != key}
    return tools


def as_tools(tools: Any) -> Any:
    """Return tools as they are, and OpenAI's older functions ({name, parameters}, bare) as tools."""
    functions = parsed(tools)
    if not isinstance(functions, list):
        return tools
    return [
        {"type": "function", "function": function}
        if isinstance(function, dict) and "function" not in function and "name" in function
        else function
        for function in map(parsed, functions)
    ]


def _as_ours(turn: Any, where: str, columns: Columns) -> Any:
    """Return the turn with our names of its keys, and without those that the user has us ignore."""
    turn = parsed(turn)
    if not isinstance(turn, dict) or not (columns.message_keys or columns.ignored_message_keys):
        return turn
    turn = {key: value for key, value in turn.items() if key not in columns.ignored_message_keys}
    for ours, theirs in columns.message_keys:
        if theirs not in turn:
            if ours in ("role", "content"):
                raise ConfigMistake(f"{where} has no {theirs!r} (data.message_keys.{ours}); found {few(turn)}.")
            continue
        value = turn.pop(theirs)
        value = float(value) if ours == "weight" and isinstance(value, bool) else value
        if not is_empty(turn.get(ours)):
            raise ConfigMistake(
                f"{where} has both {theirs!r} (data.message_keys.{ours}) and {ours!r}; leave one out by "
                f"data.ignore_message_keys=[{ours}]."
            )
        turn[ours] = value
    return turn


def _add(messages: Messages, turn: dict[str, Any], speaker: Any, role: str, where: str) -> None:
    """Append the turn as a message of `role`; what a caller says is its calls."""
    if speaker not in CALLERS:
        messages.append({**turn, "role": role})
        return
    turn = dict(turn)
    calls = _calls(turn.pop("content", None), f"{where} ({speaker})")
    before = messages[-1] if messages else None
    # ms-swift writes every call as a turn of its own: those that follow one another were made together.
    is_bare = turn.keys() <= {"role"}
    if speaker == "tool_call" and is_bare and isinstance(before, dict) and before.get("role") == "assistant":
        messages[-1] = {**before, "tool_calls": [*(before.get("tool_calls") or []), *calls]}
        return
    messages.append({**turn, "role": role, "tool_calls": calls})


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Return a caller's JSON object {name, arguments}, or a list of them, as text or as it is."""
    calls = parsed(value)
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"{where} holds {short(value)}, expected JSON of a name and its arguments.")
    return [call if "function" in call else {"type": "function", "function": call} for call in calls]
