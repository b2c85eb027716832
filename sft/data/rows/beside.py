"""What columns beside the conversation add to it: a system prompt, earlier turns, tools, reasoning, context, a weight,
and variables of the chat template.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from sft.data.chat.values import is_empty, plain
from sft.data.rows.cells import Cells, optional_text, optional_texts, parsed, short
from sft.data.rows.columns import TEMPLATE_KWARGS_KEY, WEIGHT_COLUMNS, Columns
from sft.data.rows.speakers import Messages, as_tools, messages_of, messages_of_sharegpt, tools_lifted_from
from sft.data.types import ConfigMistake, RowError


def tools_of(cells: Cells, where: str, columns: Columns, messages: Messages) -> Any:
    """Return the tools that a row offers: those in its column of tools, else those inside one of its messages."""
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


def turns_before(cells: Cells, where: str, columns: Columns, messages: Messages) -> Messages:
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


def add_reasoning(cells: Cells, where: str, key: str, messages: Messages) -> None:
    """Give the thought of its column to the last message of the assistant's."""
    thought = optional_texts(cells, key, where)
    replies = [k for k, message in enumerate(messages) if message.get("role") == "assistant"]
    if thought.strip() and replies:
        k = replies[-1]
        if not is_empty(messages[k].get("reasoning_content")):
            raise RowError(f"{where}: reasoning both in the column {key!r} and in the last reply; keep one.")
        messages[k] = {**messages[k], "reasoning_content": thought}


def with_context(cells: Cells, where: str, columns: Columns, messages: Messages) -> Messages:
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


def weight_of(cells: Cells, where: str, columns: Columns) -> float:
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


def options_of(cells: Cells, where: str, columns: Columns, template_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables for the chat template: those of the configuration, replaced by those of the row."""
    of_row = None if is_empty(stated := cells.get(TEMPLATE_KWARGS_KEY)) else plain(parsed(stated))
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
