"""Which format a file has: from its columns and first rows, settled once for all of its rows.

Columns that the user named come first, and nothing takes their place. Then the first that fits wins:

    1. the columns of data.prompt_key and data.response_key, both there   (not with data.multiturn.enable)
    2. a list of messages in data.multiturn.messages_key, or in one of CHATS: {role, content} or {from, value}
    3. alpaca, dolly, openorca by their column names
    4. one well-known prompt column and one well-known response column
    5. plain text in data.text_key

Where two formats of the same line fit, the file is ambiguous, and data.format decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from sft.data.chat.meaning import shape_of, words_of
from sft.data.rows.cells import few, parsed, short
from sft.data.rows.columns import KNOBS, PROMPTS, RESPONSES, Columns, refuse_unread
from sft.data.rows.formats import FORMATS, columns_read
from sft.data.rows.splits import canonical
from sft.data.rows.unpacked import kind_of
from sft.data.types import Row
from sft.errors import InputError

ROWS_LOOKED_AT = 100

CHATS = ("conversations", "conversation")
SPLITS = (("split",), ("subset",), ("partition",), ("fold",))
"""Last words of columns that say of which split a row is."""

CHOSEN_BY_SHAPE = ("messages", "sharegpt", "prompt_response")
"""Formats whose columns can be named; the others are known by the names of theirs."""


def recognise(rows: Sequence[Row], columns: Columns, name: str) -> Columns:
    """Return `columns` with the format and the columns that the file's first rows show.

    Raises InputError, with the columns found and what each format needs, where no format fits or several do, where
    none of the columns is there that the user named, and where columns mean something and nobody reads them.
    """
    found = {column for _, cells in rows for column in cells} - {*columns.ignored}
    settled = _settled(found, rows, columns, name)
    if columns.format != "auto":  # who insists on it trains good and bad replies, and a text without what answers it
        insisted = ("label", *(RESPONSES if columns.format == "text" else ()))
        settled = replace(settled, ignored=(*settled.ignored, *sorted(found & {*insisted} - columns_read(settled))))
    for where, cells in rows:
        kept = {column: value for column, value in cells.items() if column not in settled.ignored}
        refuse_unread(kept, where, settled, columns_read(settled))
    return settled


def _settled(found: set[str], rows: Sequence[Row], columns: Columns, name: str) -> Columns:
    fitting: list[Columns] = []
    steps = (_named_by_user,) if _is_named(columns) else (_by_defaults, _chats, _named_by_format, _known_pair, _text)
    for step in steps:
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
    if absent := [key for key in _named(columns) if getattr(columns, key) not in found]:
        raise InputError(f"{rows[0][0]}: {insisted}{_without_named(found, columns, absent, name)}")
    wanted = _needs(columns)
    needed = "".join(f"\n  {form}: {need}" for form, need in wanted.items() if columns.format in ("auto", form))
    raise InputError(
        f"{rows[0][0]}: {insisted}{name} has no such columns; found {few(found)}, expected:{needed}\n"
        "Name its columns by data.prompt_key and data.response_key, data.multiturn.messages_key or data.text_key, "
        f"or convert it.{_of_tables(name)}{_of_preferences(found, rows) or _chats_of_ones_own(rows)}"
    )


def _of_tables(name: str) -> str:
    is_table = kind_of(Path(name)) in (".csv", ".tsv")
    return f" The first line of a {kind_of(Path(name))[1:].upper()} file must name its columns." if is_table else ""


def _named(columns: Columns) -> list[str]:
    """Return the keys of columns that make a conversation, as far as the user named them and the format reads them."""
    pair = () if columns.multiturn else ("prompt_key", "response_key")
    of_format = {
        "auto": (*pair, "messages_key", *(() if columns.multiturn else ("text_key",))),
        "prompt_response": pair,
        "messages": ("messages_key",),
        "sharegpt": ("messages_key",),
        "text": ("text_key",),
    }
    return [key for key in of_format.get(columns.format, ()) if columns.names(key)]


def _is_named(columns: Columns) -> bool:
    return bool(_named(columns))


def _without_named(found: set[str], columns: Columns, absent: Sequence[str], name: str) -> str:
    told = " and ".join(f"{KNOBS[key]}={getattr(columns, key)}" for key in absent)
    close = [match for key in absent for match in get_close_matches(getattr(columns, key), sorted(found), n=1)]
    guess = f"did you mean {' and '.join(close)}? " if close else ""
    return (
        f"{told} names no column of {name}; {guess}found {few(found)}. A column that is named is not guessed; files "
        "of another format say so in data.mixture (path, format)."
    )


def _made_for_something_else(found: set[str], rows: Sequence[Row], columns: Columns) -> str | None:
    """Return what speaks against training on these rows as they are, though their columns fit."""
    told = f"found {few(found)}"
    if columns.format == "text" and {"role", "parent_id"} <= found:
        return (
            f"single messages of conversations, not whole ones ({told}); expected a conversation per row: follow "
            "parent_id and write a list of {role, content}. data.format=text trains each text by itself."
        )
    has_label = "label" in found  # and is not ignored
    if (
        columns.format == "prompt_response"
        and has_label
        and any(isinstance(cells.get("label"), bool) for _, cells in rows)
    ):
        return (
            f"good and bad replies, told apart by the column 'label' ({told}), and all of them would be trained. Keep "
            "the rows with label true and take the column out; data.ignore_columns=[label] trains all rows."
        )
    for name in sorted(found - {*columns.ignored}):
        if words_of(name)[-1:] not in SPLITS:
            continue
        said = {canonical(str(cells.get(name)).lower()) for _, cells in rows}
        if "train" in said and said & {"validation", "test"}:
            return (
                f"rows of several splits in one file, told apart by the column {name!r} ({', '.join(sorted(said))}), "
                f"and all of them would be trained. Write a file for each; data.ignore_columns=[{name}] trains all."
            )
    if columns.format in ("messages", "sharegpt"):
        turns = next(
            (parsed(cells[columns.messages_key]) for _, cells in rows if cells.get(columns.messages_key)), None
        )
        if isinstance(turns, list) and turns and all(isinstance(parsed(turn), str) for turn in turns):
            return (
                f"column {columns.messages_key!r} holds a list of texts ({short(turns[0])}) that do not say who "
                "speaks; expected messages, each with role and content. Convert it."
            )
    return None


def _chats_of_ones_own(rows: Sequence[Row]) -> str:
    """Return the way out for a conversation in a column that we do not know, "" where there is none."""
    chats = [column for column, value in rows[0][1].items() if shape_of(value) == "chat"]
    if chats:
        return f" {chats[0]!r} holds a conversation: data.columns.messages={chats[0]} reads it."
    ((column, value),) = rows[0][1].items() if len(rows) == len(rows[0][1]) == 1 else [("", None)]
    are_rows = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    return f" {column!r} holds a list of rows: write that list alone." if are_rows else ""


def _of_preferences(found: set[str], rows: Sequence[Row]) -> str:
    """Return the way out for pairs of a chosen and a rejected reply, "" for all other columns."""
    if not {"chosen", "rejected"} <= found:
        return ""
    if any(isinstance(parsed(cells.get("chosen")), list) and len(parsed(cells["chosen"])) > 1 for _, cells in rows):
        return " To train the chosen conversations of these pairs: data.multiturn.messages_key=chosen."
    prompt = next((name for name in PROMPTS if name in found), "<the column that asks>")
    return f" To train the chosen replies of these pairs: data.prompt_key={prompt} data.response_key=chosen."


def _named_by_user(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    """Return the formats of the columns that the user named, where they are there."""
    named, fits = _named(columns), list[Columns]()
    if "messages_key" in named and columns.messages_key in found:
        fits.append(_chat(columns.messages_key, rows, columns))
    if {"prompt_key", "response_key"} & {*named}:
        fits += _pairs(found, columns)
    if "text_key" in named and columns.text_key in found:
        fits.append(replace(columns, format="text"))
    return fits


def _pairs(found: set[str], columns: Columns) -> list[Columns]:
    """Return a pair of which at least one column is named: the other by its default, or by a well-known name."""
    prompts = _names(columns, "prompt_key", PROMPTS, found)
    responses = _names(columns, "response_key", RESPONSES, found)
    return [_pair(columns, p, r) for p in prompts for r in responses if p != r or r == columns.response_key]


def _names(columns: Columns, key: str, known: Sequence[str], found: set[str]) -> list[str]:
    own = getattr(columns, key)
    if columns.names(key) or own in found:
        return [own] if own in found else []
    return [name for name in known if name in found]


def _pair(columns: Columns, prompt: str, response: str) -> Columns:
    own = (columns.prompt_key, columns.response_key)
    guessed = tuple(name for name in (prompt, response) if name not in own)
    return replace(columns, format="prompt_response", prompt_key=prompt, response_key=response, guessed=guessed)


def _by_defaults(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    if columns.multiturn or not {columns.prompt_key, columns.response_key} <= found:
        return []
    return [replace(columns, format="prompt_response")]


def _chat(key: str, rows: Sequence[Row], columns: Columns) -> Columns:
    turns = next((parsed(cells[key]) for _, cells in rows if cells.get(key)), None)
    first = parsed(turns[0]) if isinstance(turns, list) and turns else None
    sharegpt = isinstance(first, dict) and "from" in first and "role" not in first and not columns.message_keys
    return replace(columns, format="sharegpt" if sharegpt else "messages", messages_key=key)


def _chats(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    return [_chat(key, rows, columns) for key in (columns.messages_key, *CHATS) if key in found][:1]


def _named_by_format(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    if columns.multiturn:
        return []
    known = [form for form in FORMATS.values() if form.name not in CHOSEN_BY_SHAPE]
    return [replace(columns, format=form.name) for form in known if set(form.needs) <= found]


def _known_pair(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    if columns.multiturn:
        return []
    return [
        _pair(columns, prompt, response)
        for prompt in [name for name in PROMPTS if name in found]
        for response in [name for name in RESPONSES if name in found]
    ]


def _text(found: set[str], rows: Sequence[Row], columns: Columns) -> list[Columns]:
    if columns.multiturn or columns.text_key not in found:
        return []
    return [replace(columns, format="text")]


def _told(columns: Columns) -> str:
    form = FORMATS.get(columns.format)
    of_name = form.needs if form and form.name not in CHOSEN_BY_SHAPE else None
    pair = (columns.prompt_key, columns.response_key)
    read = of_name or (pair if columns.format == "prompt_response" else columns_read(columns))
    return f"{columns.format} ({', '.join(read)})"


def _needs(columns: Columns) -> dict[str, str]:
    chat = f"a list of messages in {' or '.join(map(repr, (columns.messages_key, *CHATS)))}"
    if columns.multiturn:
        return {"messages": f"{chat} (data.multiturn.enable=true)"}
    pair = f"one of {', '.join(PROMPTS)} with one of {', '.join(RESPONSES)}"
    return {
        "prompt_response": f"{columns.prompt_key!r} and {columns.response_key!r}, or {pair}",
        "messages": f"{chat}, each with role and content",
        "sharegpt": f"{chat}, each with from and value",
        **{
            form.name: ", ".join(map(repr, form.needs)) for form in FORMATS.values() if form.name not in CHOSEN_BY_SHAPE
        },
        "text": f"{columns.text_key!r}",
    }
