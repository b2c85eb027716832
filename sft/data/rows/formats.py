"""Rows of many shapes -> Conversations and Documents: one small function for each shape, one entry in FORMATS.

To add a format: write its function, and its entry. `recognise` (recognise.py) settles, once per file, which of them
reads its rows; the schema, the YAML comment and the docs are held to the entries by a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sft.data.rows.beside import add_reasoning, options_of, tools_of, turns_before, weight_of, with_context
from sft.data.rows.cells import Cells, nested, optional_text, parsed, short, text
from sft.data.rows.columns import Columns, refuse_unread
from sft.data.rows.speakers import (
    SHAREGPT_ROLES,
    Messages,
    messages_of,
    messages_of_sharegpt,
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
    return Document(text(cells, columns.text_key, where, knob="data.text_key"), where, weight_of(cells, where, columns))


def to_conversation(row: Row, columns: Columns, template_options: Mapping[str, Any]) -> Conversation:
    """Return the messages, tools and template options of one row.

    Raises RowError for a row that its format cannot read, ConfigMistake for columns that mean something, unread.
    """
    where, cells = _without_ignored(row, columns)
    refuse_unread(cells, where, columns, columns_read(columns))
    turns = FORMATS[columns.format].convert(cells, where, columns)
    tools = tools_of(cells, where, columns, turns.messages)
    if columns.reasoning_key is not None:
        add_reasoning(cells, where, columns.reasoning_key, turns.messages)
    before = turns_before(cells, where, columns, turns.messages)
    return Conversation(
        [*before, *turns.messages] if before else turns.messages,
        tools,
        options_of(cells, where, columns, template_options),
        where,
        given=turns.given + len(before) if turns.given or turns.prefill else 0,
        prefill=turns.prefill,
        weight=weight_of(cells, where, columns),
    )


def columns_read(columns: Columns) -> frozenset[str]:
    """Return the names of the columns from which a row's messages (or its plain text) are made, by its format."""
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
    return Turns(with_context(cells, where, columns, messages_of(turns_in(cells, key, where), where, key, columns)))


def of_sharegpt(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert a ShareGPT list of {from, value} to turns."""
    key = columns.messages_key
    messages = messages_of_sharegpt(turns_in(cells, key, where), where, key, columns)
    return Turns(with_context(cells, where, columns, messages))


def of_prompt_response(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert a row in which one column asks and one answers: text or lists of messages.

    Where they are nested, they stand at the end of data.*_dict_keys.

    What the prompt holds is given, the assistant's words too. A prompt that ends with them is a prefill: the response
    goes on behind its last character.
    """
    prompt = opened_turns(_led_to(cells, where, "prompt_key", columns))
    response = opened_turns(_led_to(cells, where, "response_key", columns))
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
    return _joined(with_context(cells, where, columns, prompt), response, where)


def of_alpaca(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert an Alpaca row to turns: instruction, input (may be empty), output."""
    return Turns(with_context(cells, where, columns, _pair(cells, where, "instruction", "input", "output")))


def of_dolly(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert a Dolly row to turns: instruction, context or input (either may be empty), response."""
    filled = [key for key in ("context", "input") if optional_text(cells, key, where).strip()]
    if len(filled) > 1:
        raise RowError(f"{where}: both 'context' and 'input' hold text, expected one of them; join or empty one.")
    return Turns(_pair(cells, where, "instruction", filled[0] if filled else None, "response"))


def of_openorca(cells: Cells, where: str, columns: Columns) -> Turns:
    """Convert an OpenOrca row to turns: system_prompt (may be empty), question, response."""
    return Turns(with_context(cells, where, columns, _pair(cells, where, "question", None, "response")))


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


def opened_turns(value: Any) -> Any:
    """Return the messages that JSON text holds (datasets' Json type); any other value as it is."""
    turns = parsed(value) if isinstance(value, str) else None
    is_chat = isinstance(turns, list) and all(
        isinstance(turn, dict) and "role" in turn and ("content" in turn or "tool_calls" in turn) for turn in turns
    )
    return turns if is_chat and turns else value


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
