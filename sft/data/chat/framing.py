"""The beginning and the end of a text: the token that stands before it (bos), and those that end it (eos, stops).

A tokenizer that adds bos does so for plain text. A chat is rendered by its template and tokenised as it is, by us and
by servers, so there the template must write bos itself. A model that was made with bos is a broken one without it,
and two of them are one too many.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft.data.chat.apply import apply
from sft.data.chat.template import turn_shapes
from sft.errors import InputError

PROBE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "reply"}]
NO_BOS = re.compile(r"{#[-+]?\s*no bos\s*[-+]?#}", re.IGNORECASE)
"""The Jinja comment by which a template says that it does without bos on purpose."""

WRITE_BOS = "{{- bos_token }}"


@dataclass(frozen=True)
class Frame:
    """The ids that a tokenizer puts around a plain text."""

    before: list[int]
    after: list[int]


def frame_of(tokenizer: Any) -> Frame:
    """Return the ids that the tokenizer puts before and after a text."""
    backend = tokenizer.backend_tokenizer
    bare, framed = (backend.encode("a", add_special_tokens=add).ids for add in (False, True))
    start = next((n for n in range(len(framed)) if framed[n : n + len(bare)] == bare), 0)
    return Frame(framed[:start], framed[start + len(bare) :])


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the text of every special token, eos among them."""
    special = (str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple({*special, tokenizer.eos_token or ""} - {""})


def adds_bos(tokenizer: Any) -> bool:
    """Return True if the tokenizer puts bos before every plain text."""
    return tokenizer.bos_token is not None and tokenizer.bos_token_id in frame_of(tokenizer).before


def with_bos(template: str, tokenizer: Any) -> str:
    """Return a shipped template, with the bos token written first where the model was trained on texts that begin so.

    That is where the tokenizer adds bos, or where its own template, which this one replaces, writes it.
    """
    bos = tokenizer.bos_token
    if not bos or bos in template:  # minimind's bos is the tag of every turn
        return template
    return WRITE_BOS + template if adds_bos(tokenizer) or "bos_token" in str(tokenizer.chat_template) else template


def bos_written(tokenizer: Any, template: str, options: Mapping[str, Any]) -> int | None:
    """Return how many bos the template writes before a conversation; None if it renders no plain one."""
    bos = tokenizer.bos_token
    if not bos:
        return 0
    try:
        text = apply(tokenizer, template, PROBE, None, options, "probe of the chat template")
    except InputError:
        return None
    found = re.match(rf"(?:\s*{re.escape(bos)})*", text)
    return found.group().count(bos) if found else 0


def check_bos_once(tokenizer: Any, template: str, options: Mapping[str, Any]) -> None:
    """Raise InputError if a template writes bos twice. Where bos is the tag of every turn (minimind), it may."""
    written = bos_written(tokenizer, template, options) or 0
    if written > 1 and apply(tokenizer, template, PROBE, None, options, "probe").count(tokenizer.bos_token) == written:
        raise InputError(
            f"the chat template begins with {written} {tokenizer.bos_token}, of which the model knows one; set "
            "data.chat_template to one that writes {{ bos_token }} once."
        )


def check_bos_written(tokenizer: Any, template: str, options: Mapping[str, Any]) -> None:
    """Raise InputError if a template of the user's leaves out the bos that the tokenizer adds to plain text.

    The tokenizer's own may: the model is served with it as it is.
    """
    if bos_written(tokenizer, template, options) == 0 and adds_bos(tokenizer) and not NO_BOS.search(template):
        raise InputError(
            f"data.chat_template writes no {tokenizer.bos_token} at the beginning, which this tokenizer puts before "
            f"every text, so that the model knows no text without it; let the template begin with {WRITE_BOS}, or, if "
            "that is meant, say {# no bos #} in it."
        )


def beginning_and_end(tokenizer: Any, template: str, options: Mapping[str, Any]) -> str:
    """Return the sentence that says, for tokenizer and template, what begins and what ends a text and a turn."""
    bos, written = tokenizer.bos_token, bos_written(tokenizer, template, options)
    by_template = {None: "not known", 0: "missing", 1: "written"}.get(written, "doubled")
    beginning = (
        f"bos {bos}: {'added' if adds_bos(tokenizer) else 'not added'} to plain text, {by_template} in chats"
        if bos
        else "no bos"
    )
    try:
        shapes = turn_shapes(tokenizer, template, options)
    except InputError:  # said, with its row, where a chat is rendered
        turn = "the chat template shows no end of a turn"
    else:
        stops = (f"{tokenizer.convert_ids_to_tokens(stop)} = {stop}" for stop in shapes.stop_token_ids)
        turn = f"a turn ends with {' or '.join(stops)}, which is trained"
        if shapes.words.closes_thought:
            turn += f"; the prompt opens a thought, which a reply without one closes by {shapes.words.lead!r}"
    return f"{beginning}; {turn}; plain text ends with eos {tokenizer.eos_token or '(none)'}"
