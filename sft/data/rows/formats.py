"""Rows of many shapes -> Conversations and Documents: one small function for each shape, one entry in FORMATS.

To add a format: write its function, and its entry. `recognise` (recognise.py) settles, once per file, which of them
reads its rows; the schema, the YAML comment and the docs are held to the entries by a test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sft.data.chat.values import is_empty, plain
from sft.data.rows.cells import Cells, nested, optional_text, optional_texts, parsed, short, text
from sft.data.rows.columns import TEMPLATE_KWARGS_KEY, WEIGHT_COLUMNS, Columns, refuse_unread
from sft.data.rows.speakers import (
    SHAREGPT_ROLES,
    Messages,
    as_tools,
    messages_of,
    messages_of_sharegpt,
    tools_lifted_from,
    turns_in,
)
from sft.data.types import ConfigMistake, Conversation, Document, Row, RowError

__all__ = ["FORMATS", "SHAREGPT_ROLES", "Columns", "Format", "Turns", "columns_read", "to_conversation", "to_document"]


@dataclass
class Turns:
    """The messages of a row; given, prefill: as in Conversation."""

    messages: Messages
    given: int = 0
    prefill: str = ""


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    needs:   columns without which a row is not of this format; for those that can be named, their default names
    reads:   what more it reads, where it is there
    convert: makes the turns; raises RowError for a row that it cannot read
    example: a row, for the docs
    """

    name: str
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    convert: Callable[[Cells, str, Columns], Turns]
    example: dict[str, Any]


def to_document(row: Row, columns: Columns) -> Document:
    """Return the plain text of one row; all of its tokens are trained."""
    where, cells = _without_ignored(row, columns)
    refuse_unread(cells, where, columns, columns_read(columns))
    return Document(text(cells, columns.text_key, where, knob="data.text_key"), where, _weight(cells, where, columns))


def to_conversation(row: Row, columns: Columns, template_options: Mapping[str, Any]) -> Conversation:
    """Return the messages, tools and template options of one row.

    Raises RowError for a row that its format cannot read, ConfigMistake for columns that mean something, unread.
    """
    where, cells = _without_ignored(row, columns)
    refuse_unread(cells, where, columns, columns_read(columns))
    turns = FORMATS[columns.format].convert(cells, where, columns)
    tools = _tools(cells, where, columns, turns.messages)
    if columns.reasoning_key is not None:
        _add_reasoning(cells, where, columns.reasoning_key, turns.messages)
    before = _before(cells, where, columns, turns.messages)
    return Conversation(
        [*before, *turns.messages] if before else turns.messages,
        tools,
        _options(cells, where, columns, template_options),
        where,
        given=turns.given + len(before) if turns.given or turns.prefill else 0,
        prefill=turns.prefill,
        weight=_weight(cells, where, columns),
    )


def columns_read(columns: Columns) -> frozenset[str]:
    """Return the columns that make the messages of a row."""
    match columns.format:
        case "prompt_response":
            return frozenset({columns.prompt_key, columns.response_key})
        case "messages" | "sharegpt":
            return frozenset({columns.messages_key})
        case "text":
            return frozenset({columns.text_key})
    return frozenset(FORMATS[columns.format].needs + FORMATS[columns.format].reads)


def of_messages(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert OpenAI's list of {role, content, ...}, or JSON text of it, to turns."""
    key = columns.messages_key
    return Turns(_with_context(cells, where, columns, messages_of(turns_in(cells, key, where), where, key, columns)))


def of_sharegpt(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert a ShareGPT list of {from, value} to turns."""
    key = columns.messages_key
    messages = messages_of_sharegpt(turns_in(cells, key, where), where, key, columns)
    return Turns(_with_context(cells, where, columns, messages))


def of_prompt_response(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert a row in which one column asks and one answers: text or lists of messages.

    Where they are nested, they stand at the end of data.*_dict_keys.

    What the prompt holds is given, the assistant's words too. A prompt that ends with them is a prefill: the response
    goes on behind its last character.
    """
    prompt = _led_to(cells, where, "prompt_key", columns)
    response = _led_to(cells, where, "response_key", columns)
    if isinstance(prompt, str):
        prompt = [_asked(prompt, where, f"data.prompt_key={columns.prompt_key}")]
    elif not isinstance(prompt, list):
        raise RowError(
            f"{where}: data.prompt_key={columns.prompt_key} leads to {short(prompt)}, "
            "expected text or a list of messages; nested columns are reached by data.prompt_dict_keys."
        )
    else:
        prompt = messages_of(prompt, where, columns.prompt_key, columns)
    if isinstance(response, str):
        response = [{"role": "assistant", "content": response}]
    elif not isinstance(response, list) or not response:
        raise RowError(
            f"{where}: data.response_key={columns.response_key} leads to {short(response)}, "
            "expected text or a list of messages."
        )
    else:
        response = messages_of(response, where, columns.response_key, columns)
    return _joined(_with_context(cells, where, columns, prompt), response, where)


def of_alpaca(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert an Alpaca row to turns: instruction, input (may be empty), output."""
    return Turns(_with_context(cells, where, columns, _pair(cells, where, "instruction", "input", "output")))


def of_dolly(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert a Dolly row to turns: instruction, context or input (either may be empty), response."""
    filled = [key for key in ("context", "input") if optional_text(cells, key, where).strip()]
    if len(filled) > 1:
        raise RowError(f"{where}: both 'context' and 'input' hold text, expected one of them; join or empty one.")
    return Turns(_pair(cells, where, "instruction", filled[0] if filled else None, "response"))


def of_openorca(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert an OpenOrca row to turns: system_prompt (may be empty), question, response."""
    return Turns(_with_context(cells, where, columns, _pair(cells, where, "question", None, "response")))


_ASKED, _SAID = {"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": "Seven."}

FORMATS = {
    form.name: form
    for form in (
        Format("messages", ("messages",), (), of_messages, {"messages": [_ASKED, _SAID]}),
        Format(
            "sharegpt",
            ("conversations",),
            (),
            of_sharegpt,
            {"conversations": [{"from": "human", "value": "Name a prime."}, {"from": "gpt", "value": "Seven."}]},
        ),
        Format(
            "prompt_response",
            ("question", "answer"),
            (),
            of_prompt_response,
            {"question": "Name a prime.", "answer": "Seven."},
        ),
        Format(
            "alpaca",
            ("instruction", "output"),
            ("input",),
            of_alpaca,
            {"instruction": "Is it a prime?", "input": "7", "output": "Yes."},
        ),
        Format(
            "dolly",
            ("instruction", "response"),
            ("context", "input"),
            of_dolly,
            {"instruction": "Who won?", "context": "Blue beat red.", "response": "Blue."},
        ),
        Format(
            "openorca",
            ("system_prompt", "question", "response"),
            (),
            of_openorca,
            {"system_prompt": "Be brief.", "question": "Name a prime.", "response": "Seven."},
        ),
    )
}
"""Formats of chats. Beside them there is plain text (`to_document`)."""


def _without_ignored(row: Row, columns: Columns) -> Row:
    where, cells = row
    if not columns.ignored:
        return row
    return where, {column: value for column, value in cells.items() if column not in columns.ignored}


def _tools(cells: Cells, where: str, columns: Columns, messages: Messages) -> Any:
    """Return the tools of the row: of their column, or of the message that holds them."""
    stated = [key for key in columns.those_used_as("tools") if not is_empty(cells.get(key))]
    if len(stated) > 1:
        raise RowError(f"{where}: the columns {' and '.join(stated)} both hold tools, expected one; take one out.")
    lifted = tools_lifted_from(messages, where)
    if lifted is not None and stated:
        raise RowError(f"{where}: tools both in the column {stated[0]!r} and in a message, expected one; take one out.")
    if not stated:
        return as_tools(lifted) if lifted is not None else cells.get(columns.tools_key)
    (key,) = stated
    return cells[key] if key == columns.tools_key else as_tools(cells[key])


def _before(cells: Cells, where: str, columns: Columns, messages: Messages) -> Messages:
    """Return what columns put before the messages of a row: the system prompt, which must be the first, and earlier
    turns.
    """
    history = _history(cells, where, columns)
    stated = [(key, optional_text(cells, key, where)) for key in columns.those_used_as("system") if key in cells]
    stated = [(key, said) for key, said in stated if said.strip()]
    if not stated and not history:
        return []
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    if len({said for _, said in stated}) > 1:
        raise RowError(f"{where}: {' and '.join(key for key, _ in stated)} hold different system prompts; keep one.")
    if first.get("role") == "system":
        if stated and stated[0][1] != first.get("content"):
            raise RowError(
                f"{where}: a system message both in the column {stated[0][0]!r} and in the first turn; keep one."
            )
        if history:
            raise RowError(f"{where}: a system message stands behind the turns of the column 'history'; move it.")
        return []
    return [*({"role": "system", "content": said} for _, said in stated[:1]), *history]


def _history(cells: Cells, where: str, columns: Columns) -> Messages:
    """Return the earlier turns that a column holds, as messages: from a list of [question, answer], or of messages."""
    stated = [key for key in columns.those_used_as("history") if not is_empty(cells.get(key))]
    if not stated:
        return []
    (key,) = stated
    pairs = parsed(cells[key])
    if not isinstance(pairs, list):
        raise RowError(f"{where}: column {key!r} holds {short(pairs)}, expected a list of [question, answer].")
    if all(isinstance(turn, dict) for turn in pairs):
        read = messages_of_sharegpt if "from" in pairs[0] else messages_of
        return read(pairs, where, key, columns)
    history: Messages = []
    for k, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"{where}: {key}[{k}] is {short(pair)}, expected [question, answer].")
        history += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return history


def _add_reasoning(cells: Cells, where: str, key: str, messages: Messages) -> None:
    """Give the thought of its column to the last message of the assistant's."""
    thought = optional_texts(cells, key, where)
    replies = [k for k, message in enumerate(messages) if message.get("role") == "assistant"]
    if thought.strip() and replies:
        k = replies[-1]
        if not is_empty(messages[k].get("reasoning_content")):
            raise RowError(f"{where}: reasoning both in the column {key!r} and in the last reply; keep one.")
        messages[k] = {**messages[k], "reasoning_content": thought}


def _with_context(cells: Cells, where: str, columns: Columns, messages: Messages) -> Messages:
    """Put the documents of data.columns.context behind the last question, after a blank line."""
    if columns.context_key is None or not (context := optional_texts(cells, columns.context_key, where)).strip():
        return messages
    asked = [k for k, message in enumerate(messages) if isinstance(message, dict) and message.get("role") == "user"]
    if len(asked) != 1 or not isinstance(question := messages[asked[0]].get("content"), str):
        raise RowError(
            f"{where}: data.columns.context={columns.context_key} belongs to one question of text, and the row has "
            f"{len(asked)}; write it into the messages."
        )
    k = asked[0]
    return [*messages[:k], {**messages[k], "content": f"{question}\n\n{context}"}, *messages[k + 1 :]]


def _weight(cells: Cells, where: str, columns: Columns) -> float:
    """Return the weight of the whole row, 1 if it states none. A column that the user named may be a flag."""
    stated = [key for key in columns.those_used_as("weight") if not is_empty(cells.get(key))]
    for key in stated:
        weight = plain(cells[key])
        is_flag = isinstance(weight, bool) and key in WEIGHT_COLUMNS
        if is_flag or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ConfigMistake(
                f"{where}: column {key!r} holds {short(weight)}, expected the weight of the row in the loss, a number "
                f"of at least 0; data.ignore_columns=[{key}] leaves it out."
            )
    weights = {float(plain(cells[key])) for key in stated}
    if len(weights) > 1:
        raise RowError(f"{where}: the columns {' and '.join(stated)} state different weights of the row; keep one.")
    return weights.pop() if weights else 1.0


def _options(cells: Cells, where: str, columns: Columns, template_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables for the chat template: those of the configuration, replaced by those of the row."""
    of_row = plain(parsed(cells.get(TEMPLATE_KWARGS_KEY)))
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


def _led_to(cells: Cells, where: str, name: str, columns: Columns) -> Any:
    """Return what the column of prompt_key or response_key (name) holds."""
    key, dict_name = getattr(columns, name), name.replace("_key", "_dict_keys")
    dict_keys = getattr(columns, dict_name)
    value = nested(cells, where, f"data.{name}", key, dict_keys, in_text=opens_text(columns, key, dict_keys))
    if columns.names(dict_name) and dict_keys and value is cells.get(key):
        raise ConfigMistake(
            f"{where}: data.{dict_name}={list(dict_keys)} leads into {key}, which holds {short(value)}, expected a "
            f"struct or a JSON object with {dict_keys[0]!r}; data.{dict_name}=[] reads the column as it is."
        )
    return value


def opens_text(columns: Columns, key: str, dict_keys: tuple[str, ...]) -> bool:
    """Return True if text in the column `key` should be parsed as JSON, so that `dict_keys` can lead into it.

    That is so where there are dict keys and the user named the column. It is not so where one of the dict keys is the
    column's own name: the column `answer` holds an answer, which may be a JSON object itself.
    """
    return key not in columns.guessed and key not in dict_keys and bool(dict_keys)


def _joined(prompt: Messages, response: Messages, where: str) -> Turns:
    """Join prompt and response; words of the assistant that end the prompt begin its reply."""
    if not prompt or not isinstance(prompt[-1], dict) or prompt[-1].get("role") != "assistant":
        answered = any(isinstance(message, dict) and message.get("role") == "assistant" for message in prompt)
        return Turns([*prompt, *response], given=len(prompt) if answered else 0)
    begun, reply = prompt[-1], response[0]
    is_reply = isinstance(reply, dict) and reply.get("role") == "assistant"
    prefill, rest = begun.get("content"), reply.get("content") if is_reply else None
    if begun.get("tool_calls") or not isinstance(prefill, str) or not isinstance(rest, str):
        raise RowError(
            f"{where}: the prompt ends with a message of the assistant's, which the response goes on with; expected "
            f"text in both, found {short(begun)} and {short(reply)}."
        )
    whole = {**{key: value for key, value in begun.items() if key != "prefix"}, **reply, "content": prefill + rest}
    return Turns([*prompt[:-1], whole, *response[1:]], given=len(prompt) - 1, prefill=prefill)


def _pair(cells: Cells, where: str, key: str, more_key: str | None, response_key: str) -> Messages:
    """Return what the first column asks, and where it is not blank the second; what the last one answers."""
    parts = [text(cells, key, where), optional_text(cells, more_key, where) if more_key else ""]
    question = _asked("\n\n".join(part for part in parts if part.strip()), where, f"column {key!r}")
    return [question, {"role": "assistant", "content": text(cells, response_key, where)}]


def _asked(question: str, where: str, found_in: str) -> dict[str, Any]:
    if not question.strip():
        raise RowError(f"{where}: {found_in} asks nothing (it is blank), expected a question. Take the row out.")
    return {"role": "user", "content": question}
