"""Which format a file has: from its columns and first rows, settled once for all of its rows.

The first that fits wins:

    1. the columns of data.prompt_key and data.response_key, both there   (not with data.multiturn.enable)
    2. a list of messages in data.multiturn.messages_key, or in one of CHATS: {role, content} or {from, value}
    3. alpaca, dolly, openorca by their column names
    4. one well-known prompt column and one well-known response column
    5. plain text in data.text_key

Where two formats of the same line fit, the file is ambiguous, and data.format decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sft.data.chat.variables import unread
from sft.data.rows.cells import few, parsed, short
from sft.data.rows.formats import TEMPLATE_KWARGS_KEY, Columns, opens_text
from sft.data.types import Row
from sft.errors import InputError

ROWS_LOOKED_AT = 100

CHATS = ("conversations", "conversation")
PROMPTS = ("prompt", "question", "query", "problem", "instruction")
RESPONSES = ("response", "answer", "completion", "output", "solution")

NAMED = {
    "alpaca": ("instruction", "output"),
    "dolly": ("instruction", "response"),
    "openorca": ("system_prompt", "question", "response"),
}
"""The columns that a format needs; what more it reads stands in READS."""

READS = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "dolly": ("instruction", "context", "input", "response"),
    "openorca": ("system_prompt", "question", "response"),
}


def recognise(rows: Sequence[Row], columns: Columns, name: str) -> Columns:
    """`columns` with the format and the columns that the file's first rows show.

    Raises InputError, with the columns found and what each format needs, where no format fits or several do.
    """
    found = {column for _, cells in rows for column in cells}
    fitting: list[Columns] = []
    for step in (_named_by_user, _chats, _named_by_format, _known_pair, _text):
        fitting = [fit for fit in step(found, rows, columns) if columns.format in ("auto", fit.format)]
        if fitting:
            break
    if len(fitting) == 1:
        if columns.format == "auto" and (complaint := _made_for_something_else(found, rows, fitting[0])):
            raise InputError(f"{rows[0][0]}: {complaint}")
        return fitting[0]
    insisted = "" if columns.format == "auto" else f"data.format={columns.format}, but "
    if fitting:
        one_format = len({fit.format for fit in fitting}) == 1
        raise InputError(
            f"{rows[0][0]}: {insisted}the columns {few(found)} of {name} fit "
            f"{' and '.join(_told(fit) for fit in fitting)}; choose by {'' if one_format else 'data.format, or by '}"
            "data.prompt_key and data.response_key."
        )
    wanted = _needs(columns)
    needed = "".join(f"\n  {form}: {need}" for form, need in wanted.items() if columns.format in ("auto", form))
    raise InputError(
        f"{rows[0][0]}: {insisted}{name} has no such columns; found {few(found)}, expected:{needed}\n"
        "Name its columns by data.prompt_key and data.response_key, data.multiturn.messages_key or data.text_key, "
        f"or convert it.{_of_preferences(found, rows)}"
    )


def verdict(
    rows: Sequence[Row],
    columns: Columns,
    name: str,
    *,
    sorted_by: str | None = None,
    variables: frozenset[str] | None = None,
) -> str:
    """What `recognise` found, as a line for the user: "train.jsonl: alpaca (columns instruction, output)".

    sorted_by: the column that a curriculum reads
    variables: that the chat template reads; None: not known
    """
    found = list(dict.fromkeys(column for _, cells in rows for column in cells))
    read = {*_read(columns), columns.tools_key, columns.enable_thinking_key, TEMPLATE_KWARGS_KEY}
    if variables is not None and "enable_thinking" not in variables:
        read.remove(columns.enable_thinking_key)
    if columns.format == "text":
        read = {columns.text_key}
    read |= {sorted_by} if sorted_by else set()
    others = [column for column in found if column not in read]
    told = f"{name}: {columns.format} (columns {', '.join(column for column in found if column in read)}"
    told += "".join(_out_of_text(rows, columns))
    told += "".join(f"; {clause}" for clause in _unread_variables(rows, columns, variables))
    return told + (f"; not read: {', '.join(others[:8])}{', …' if len(others) > 8 else ''})" if others else ")")


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


def _unread_variables(rows: Sequence[Row], columns: Columns, variables: frozenset[str] | None) -> Iterator[str]:
    """What the rows say to the chat template, and it does not hear."""
    if columns.format != "text":
        structs = [parsed(cells.get(TEMPLATE_KWARGS_KEY)) for _, cells in rows]
        given = {str(name) for struct in structs if isinstance(struct, dict) for name in struct}
        yield from unread(given, variables, TEMPLATE_KWARGS_KEY)


def _made_for_something_else(found: set[str], rows: Sequence[Row], columns: Columns) -> str | None:
    """What speaks against training on these rows as they are, though their columns fit."""
    told = f"found {few(found)}"
    if columns.format == "text" and {"role", "parent_id"} <= found:
        return (
            f"single messages of conversations, not whole ones ({told}); expected a conversation per row: follow "
            "parent_id and write a list of {role, content}. data.format=text trains each text by itself."
        )
    if columns.format == "prompt_response" and any(isinstance(cells.get("label"), bool) for _, cells in rows):
        return (
            f"good and bad replies, told apart by the column 'label' ({told}), and all of them would be trained. Keep "
            "the rows with label true and take the column out; data.format=prompt_response trains all rows."
        )
    if columns.format in ("messages", "sharegpt"):
        turns = next(
            (parsed(cells[columns.messages_key]) for _, cells in rows if cells.get(columns.messages_key)), None
        )
        if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
            return (
                f"column {columns.messages_key!r} holds a list of texts ({short(turns[0])}) that do not say who "
                "speaks; expected messages, each with role and content. Convert it."
            )
    return None


def _of_preferences(found: set[str], rows: Sequence[Row]) -> str:
    """The way out for pairs of a chosen and a rejected reply, "" for all other columns."""
    if not {"chosen", "rejected"} <= found:
        return ""
    if any(isinstance(parsed(cells.get("chosen")), list) and len(parsed(cells["chosen"])) > 1 for _, cells in rows):
        return " To train the chosen conversations of these pairs: data.multiturn.messages_key=chosen."
    prompt = next((name for name in PROMPTS if name in found), "<the column that asks>")
    return f" To train the chosen replies of these pairs: data.prompt_key={prompt} data.response_key=chosen."


def _named_by_user(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    if columns.multiturn or not {columns.prompt_key, columns.response_key} <= found:
        return []
    return [replace(columns, format="prompt_response")]


def _chats(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    for key in (columns.messages_key, *CHATS):
        if key in found:
            turns = next((parsed(cells[key]) for _, cells in rows if cells.get(key)), None)
            first = turns[0] if isinstance(turns, list) and turns else None
            sharegpt = isinstance(first, dict) and "from" in first and "role" not in first
            return [replace(columns, format="sharegpt" if sharegpt else "messages", messages_key=key)]
    return []


def _named_by_format(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    if columns.multiturn:
        return []
    return [replace(columns, format=form) for form, needed in NAMED.items() if set(needed) <= found]


def _known_pair(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    if columns.multiturn:
        return []
    return [
        replace(columns, format="prompt_response", prompt_key=prompt, response_key=response, by_names=True)
        for prompt in [name for name in PROMPTS if name in found]
        for response in [name for name in RESPONSES if name in found]
    ]


def _text(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    if columns.multiturn or columns.text_key not in found:
        return []
    return [replace(columns, format="text")]


def _read(columns: Columns) -> tuple[str, ...]:
    """The columns that make the conversation."""
    match columns.format:
        case "prompt_response":
            return (columns.prompt_key, columns.response_key)
        case "messages":
            return (columns.messages_key,)
        case "sharegpt":
            return (columns.messages_key, "system")
    return READS.get(columns.format, ())


def _told(columns: Columns) -> str:
    return f"{columns.format} ({', '.join(NAMED.get(columns.format) or _read(columns))})"


def _needs(columns: Columns) -> dict[str, str]:
    chat = f"a list of messages in {' or '.join(map(repr, (columns.messages_key, *CHATS)))}"
    if columns.multiturn:
        return {"messages": f"{chat} (data.multiturn.enable=true)"}
    pair = f"one of {', '.join(PROMPTS)} with one of {', '.join(RESPONSES)}"
    return {
        "prompt_response": f"{columns.prompt_key!r} and {columns.response_key!r}, or {pair}",
        "messages": f"{chat}, each with role and content",
        "sharegpt": f"{chat}, each with from and value",
        **{form: ", ".join(map(repr, needed)) for form, needed in NAMED.items()},
        "text": f"{columns.text_key!r}",
    }
