"""What is said of a file at the start: its format, what was read as what, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sft.data.chat.messages import READ_KEYS
from sft.data.chat.values import is_empty
from sft.data.chat.variables import unread
from sft.data.rows.cells import parsed
from sft.data.rows.columns import TEMPLATE_KWARGS_KEY, Columns
from sft.data.rows.formats import columns_read, opened_turns, opens_text
from sft.data.rows.speakers import ROW_KEYS
from sft.data.types import Row


def verdict(
    rows: Sequence[Row],
    columns: Columns,
    name: str,
    *,
    sorted_by: str | None = None,
    variables: frozenset[str] | None = None,
    keys_read: frozenset[str] = frozenset(),
) -> str:
    """Return what `recognise` found, as a line for the user: "train.jsonl: alpaca (columns instruction, output)".

    sorted_by: the column that a curriculum reads
    variables: that the chat template reads; None: not known
    keys_read: of messages, by the chat template
    """
    found = list(dict.fromkeys(column for _, cells in rows for column in cells))
    empty = {column for column in found if all(is_empty(cells.get(column)) for _, cells in rows)}
    made_of = columns_read(columns)
    used = {column: use for column, use in columns.used.items() if column in found and column not in made_of}
    if variables is not None and "enable_thinking" not in variables:
        used.pop(columns.enable_thinking_key, None)
    others = [column for column in found if column not in made_of and column not in used and column != sorted_by]
    read = [column for column in found if column not in others and column not in columns.ignored]
    told = f"{name}: {columns.format} (columns {', '.join(read)}"
    told += "".join(f"; {use} from {column}" for column, use in used.items() if _needs_telling(column, use, columns))
    told += "".join(_out_of_text(rows, columns))
    told += "".join(f"; {clause}" for clause in _unread_variables(rows, columns, variables))
    # Sorted by danger: what was left out by request, what would matter if it were not empty, the rest.
    ignored = [column for column in found if column in columns.ignored]
    told += f"; ignored: {', '.join(ignored)}" if ignored else ""
    rest = [column for column in others if column not in ignored]
    rest.sort(key=lambda column: (column in empty, found.index(column)))
    shown = [f"{column} (empty)" if column in empty else column for column in rest[:16]]
    told += f"; not read: {', '.join(shown)}{', …' if len(rest) > 16 else ''}" if rest else ""
    if keys := _unread_keys(rows, columns, keys_read):
        told += f"; not read of messages: {', '.join(keys[:16])}{', …' if len(keys) > 16 else ''}"
    return f"{told})"


def _unread_keys(rows: Sequence[Row], columns: Columns, keys_read: frozenset[str]) -> list[str]:
    """Return the keys of messages that neither we nor the chat template read, and those that the user has us ignore."""
    if columns.format not in ("messages", "sharegpt"):
        return []
    lists = [parsed(cells.get(columns.messages_key)) for _, cells in rows]
    messages = [parsed(message) for turns in lists if isinstance(turns, list) for message in turns]
    structs = [message for message in messages if isinstance(message, dict)]
    found = {key: True for message in structs for key, said in message.items() if not is_empty(said)}
    ours = {"from", "value"} if columns.format == "sharegpt" else set[str]()
    theirs = {key for _, key in columns.message_keys}
    read = READ_KEYS | ROW_KEYS | keys_read | ours | theirs
    return [
        f"{key} (ignored)" if key in columns.ignored_message_keys else key
        for key in found
        if key not in read or key in columns.ignored_message_keys
    ]


def _needs_telling(column: str, use: str, columns: Columns) -> bool:
    """Whether the name of a column does not say by itself what it is read as."""
    return column != use and use not in ("enable_thinking", TEMPLATE_KWARGS_KEY) and column not in columns.ignored


def _out_of_text(rows: Sequence[Row], columns: Columns) -> Iterator[str]:
    """Where JSON text is opened by data.*_dict_keys: "; answer out of the JSON text of extra_info"."""
    if columns.format != "prompt_response":
        return
    for key, dict_keys in (
        (columns.prompt_key, columns.prompt_dict_keys),
        (columns.response_key, columns.response_dict_keys),
    ):
        texts = [cells[key] for _, cells in rows if isinstance(cells.get(key), str)]
        structs = [parsed(text) for text in texts] if opens_text(columns, key, dict_keys) else []
        if any(isinstance(struct, dict) and dict_keys[0] in struct for struct in structs):
            yield f"; {'.'.join(dict_keys)} out of the JSON text of {key}"
        if any(opened_turns(text) is not text for text in texts):
            yield f"; messages out of the JSON text of {key}"


def _unread_variables(rows: Sequence[Row], columns: Columns, variables: frozenset[str] | None) -> Iterator[str]:
    """Yield what the rows say to the chat template without being heard."""
    if columns.format != "text":
        structs = [parsed(cells.get(TEMPLATE_KWARGS_KEY)) for _, cells in rows]
        given = {str(name) for struct in structs if isinstance(struct, dict) for name in struct}
        yield from unread(given, variables, TEMPLATE_KWARGS_KEY)
