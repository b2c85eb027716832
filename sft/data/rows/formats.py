"""Rows of many shapes -> Conversations and Documents: one small function for each shape.

`recognise` (recognise.py) settles, once per file, which of them reads its rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sft.data.rows.cells import Cells, few, nested, optional_text, parsed, present, short, text
from sft.data.types import Conversation, Document, Row, RowError

Messages = list[dict[str, Any]]

TEMPLATE_KWARGS_KEY = "chat_template_kwargs"
"""Column of a row's own variables for the chat template: a struct, or a JSON object as text."""

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


@dataclass(frozen=True)
class Columns:
    """Where a row keeps what: its format, and the columns of the formats whose columns can be named.

    format:   a key of FORMATS, or "text"; "auto" until `recognise` has seen the file
    by_names: prompt_key and response_key are not the user's, but well-known names that the file has
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
    by_names: bool = False

    def fingerprint(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def to_document(row: Row, columns: Columns) -> Document:
    """The plain text of one row; all of its tokens are trained."""
    where, cells = row
    return Document(text(cells, columns.text_key, where, knob="data.text_key"), where)


def to_conversation(row: Row, columns: Columns, template_options: Mapping[str, Any]) -> Conversation:
    """The messages, tools and template options of one row. Raises RowError for a row its format cannot read."""
    where, cells = row
    messages = FORMATS[columns.format](cells, where, columns)
    return Conversation(
        messages, cells.get(columns.tools_key), _options(cells, where, columns, template_options), where
    )


def of_messages(cells: Cells, where: str, columns: Columns) -> Messages:
    """OpenAI's list of {role, content, ...}, or JSON text of it. Its older `function_call` is a tool call."""
    messages = []
    for k, message in enumerate(_turns(cells, columns.messages_key, where)):
        if isinstance(message, dict) and "role" in message and "value" in message and "content" not in message:
            raise RowError(
                f"{where}: {columns.messages_key}[{k}] has no 'content', but {few(message)}; rename 'value'."
            )
        if isinstance(message, dict) and message.get("function_call") and not message.get("tool_calls"):
            message = {**message, "tool_calls": [{"type": "function", "function": message["function_call"]}]}
            del message["function_call"]
        messages.append(message)
    return messages


def of_sharegpt(cells: Cells, where: str, columns: Columns) -> Messages:
    """A list of {from, value}: human, gpt, system, function_call, observation; a `system` column stands before it."""
    messages = []
    for k, turn in enumerate(_turns(cells, columns.messages_key, where)):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            raise RowError(
                f"{where}: {columns.messages_key}[{k}] is from {short(speaker)}, expected one of "
                f"{', '.join(SHAREGPT_ROLES)}."
            )
        if "value" not in turn:
            raise RowError(
                f"{where}: {columns.messages_key}[{k}] has no 'value'; found {few(turn)}, expected from and value."
            )
        more = {key: value for key, value in turn.items() if key not in ("from", "value")}
        if speaker == "function_call":
            calls = _calls(turn.get("value"), f"{where}: {columns.messages_key}[{k}]")
            messages.append(more | {"role": "assistant", "tool_calls": calls})
        else:
            messages.append(more | {"role": SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    return _after_system(cells, "system", where, messages)


def of_prompt_response(cells: Cells, where: str, columns: Columns) -> Messages:
    """One column asks, one answers: text or lists of messages, at the end of data.*_dict_keys where they are nested."""
    prompt = _led_to(cells, where, "data.prompt_key", columns.prompt_key, columns.prompt_dict_keys, columns)
    response = _led_to(cells, where, "data.response_key", columns.response_key, columns.response_dict_keys, columns)
    if isinstance(prompt, str):
        prompt = [_asked(prompt, where, f"data.prompt_key={columns.prompt_key}")]
    if not isinstance(prompt, list):
        raise RowError(
            f"{where}: data.prompt_key={columns.prompt_key} leads to {short(prompt)}, "
            "expected text or a list of messages; nested columns are reached by data.prompt_dict_keys."
        )
    if isinstance(response, str):
        response = [{"role": "assistant", "content": response}]
    if not isinstance(response, list) or not response:
        raise RowError(
            f"{where}: data.response_key={columns.response_key} leads to {short(response)}, "
            "expected text or a list of messages."
        )
    return [*prompt, *response]


def of_alpaca(cells: Cells, where: str, columns: Columns) -> Messages:
    """instruction, input (may be empty), output; also `system`, and `history`: a list of earlier [question, answer]."""
    history, pairs = [], parsed(cells.get("history")) or []
    if not isinstance(pairs, list):
        raise RowError(f"{where}: column 'history' holds {short(pairs)}, expected a list of [question, answer].")
    for k, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"{where}: history[{k}] is {short(pair)}, expected [question, answer].")
        history += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return _after_system(cells, "system", where, [*history, *_pair(cells, where, "instruction", "input", "output")])


def of_dolly(cells: Cells, where: str, columns: Columns) -> Messages:
    """instruction, context or input (either may be empty), response."""
    filled = [key for key in ("context", "input") if optional_text(cells, key, where).strip()]
    if len(filled) > 1:
        raise RowError(f"{where}: both 'context' and 'input' hold text, expected one of them; join or empty one.")
    return _pair(cells, where, "instruction", filled[0] if filled else None, "response")


def of_openorca(cells: Cells, where: str, columns: Columns) -> Messages:
    """system_prompt (may be empty), question, response."""
    return _after_system(cells, "system_prompt", where, _pair(cells, where, "question", None, "response"))


FORMATS: dict[str, Callable[[Cells, str, Columns], Messages]] = {
    "messages": of_messages,
    "sharegpt": of_sharegpt,
    "prompt_response": of_prompt_response,
    "alpaca": of_alpaca,
    "dolly": of_dolly,
    "openorca": of_openorca,
}


def _options(cells: Cells, where: str, columns: Columns, template_options: Mapping[str, Any]) -> dict[str, Any]:
    """data.apply_chat_template_kwargs, over them the row's own, over those its thinking switch."""
    of_row = parsed(cells.get(TEMPLATE_KWARGS_KEY))
    if not isinstance(of_row or {}, dict):
        raise RowError(f"{where}: column {TEMPLATE_KWARGS_KEY!r} holds {short(of_row)}, expected a JSON object.")
    options = {**template_options, **{key: value for key, value in (of_row or {}).items() if value is not None}}
    thinking = cells.get(columns.enable_thinking_key)
    if thinking is not None:
        if not isinstance(thinking, bool):  # bool("false") would be true
            raise RowError(
                f"{where}: column {columns.enable_thinking_key!r} holds {short(thinking)}, expected true or false."
            )
        options["enable_thinking"] = thinking
    try:
        json.dumps(options)
    except (TypeError, ValueError) as error:
        raise RowError(f"{where}: column {TEMPLATE_KWARGS_KEY!r} is not plain JSON: {error}.") from error
    return options


def _led_to(cells: Cells, where: str, knob: str, key: str, dict_keys: tuple[str, ...], columns: Columns) -> Any:
    """What a column of `prompt_response` holds."""
    return nested(cells, where, knob, key, dict_keys, in_text=opens_text(columns, key, dict_keys))


def opens_text(columns: Columns, key: str, dict_keys: tuple[str, ...]) -> bool:
    """Whether dict keys lead into a column that holds JSON as text, too.

    Only where the user named it, and not after what it would hold: an answer, in `answer`, may be a JSON object.
    """
    return not columns.by_names and key not in dict_keys and bool(dict_keys)


def _turns(cells: Cells, key: str, where: str) -> list[Any]:
    turns = parsed(present(cells, key, where, "data.multiturn.messages_key"))
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{where}: column {key!r} holds {short(turns)}, expected a list of messages.")
    return turns


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """ShareGPT's function_call: a JSON object {name, arguments}, or a list of them, as text."""
    calls = parsed(value)
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"{where} (function_call) holds {short(value)}, expected JSON of a name and its arguments.")
    return [{"type": "function", "function": call} for call in calls]


def _pair(cells: Cells, where: str, key: str, more_key: str | None, response_key: str) -> Messages:
    """What the first column asks, and where it is not blank the second; what the last one answers."""
    parts = [text(cells, key, where), optional_text(cells, more_key, where) if more_key else ""]
    question = _asked("\n\n".join(part for part in parts if part.strip()), where, f"column {key!r}")
    return [question, {"role": "assistant", "content": text(cells, response_key, where)}]


def _asked(question: str, where: str, found_in: str) -> dict[str, Any]:
    if not question.strip():
        raise RowError(f"{where}: {found_in} asks nothing (it is blank), expected a question. Take the row out.")
    return {"role": "user", "content": question}


def _after_system(cells: Cells, key: str, where: str, messages: Messages) -> Messages:
    system = optional_text(cells, key, where)
    if not system.strip():
        return messages
    if messages and messages[0]["role"] == "system":
        raise RowError(f"{where}: a system message both in the column {key!r} and in the first turn; keep one of them.")
    return [{"role": "system", "content": system}, *messages]
