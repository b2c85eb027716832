"""What a chat template says before it is applied: the variables that it reads, and the markup that it writes.

Jinja gives every name that nobody asks for, and every tag that is no token, to the wind: neither is an error there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from jinja2 import meta

from sft.data.chat.limits import parsed
from sft.data.chat.meaning import KINDS, dangers
from sft.data.chat.messages import keys_read_by
from sft.data.types import ConfigMistake

FROM_US = re.compile(r"messages|tools|documents|add_generation_prompt|raise_exception|strftime_now|\w+_token")
"""Variables that transformers fills in."""

OF_THE_PROMPT = ("system", "tools", "history", "chat", "media", "context")
"""Kinds of meaning (meaning.KINDS) that are no mere switch where a variable has them."""

MARKUP = re.compile(r"<[|｜][\w▁./:-]+[|｜]>")


def variables(tokenizer: Any) -> frozenset[str] | None:
    """Return the names that the tokenizer's templates look up; None where there is no template, or none that can be
    read.
    """
    names = [_variables(template) for template in _templates(tokenizer)]
    known = [of_one for of_one in names if of_one is not None]
    return frozenset().union(*known) if known and len(known) == len(names) else None


def message_keys(tokenizer: Any) -> frozenset[str]:
    """Return the keys of messages that the tokenizer's templates look up."""
    return frozenset().union(*map(keys_read_by, _templates(tokenizer)))


def unread(given: Iterable[str], read: frozenset[str] | None, whose: str) -> Iterator[str]:
    """Return a clause for each name that no template looks up: "...

    does not read enable_thinkin of ..."; whose: its place.
    """
    for name in sorted(set(given) - (read if read is not None else set(given))):
        own = sorted(variable for variable in read or () if not FROM_US.fullmatch(variable))
        close = get_close_matches(name, own, n=1)
        others = f"it reads {', '.join(own)}" if own else "it has no variables of its own"
        yield (
            f"the chat template does not read {name} of {whose}, which so changes nothing; "
            f"{f'did you mean {close[0]}?' if close else others}"
        )


def refuse_unread(given: Mapping[str, Any], template: str, where: str) -> None:
    """Raise ConfigMistake for a variable that would change the prompt, and that the template does not look up."""
    if not given or (read := _variables(template)) is None:
        return
    found = {name: kind for name, kind in dangers(given, read).items() if kind in OF_THE_PROMPT}
    if found:
        told = "; ".join(f"{name!r} looks like {KINDS[kind]}" for name, kind in found.items())
        raise ConfigMistake(
            f"{where}: the chat template does not read variables of chat_template_kwargs that mean something: {told}. "
            "Write them into the messages or columns of their own, or leave them out (data.ignore_columns="
            "[chat_template_kwargs], where they are a column)."
        )


def remarks(tokenizer: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """Return what looks like a mistake in a template and the variables that it is given; a line each."""
    yield from unread(options, variables(tokenizer), "data.apply_chat_template_kwargs")
    tags = dict.fromkeys(tag for template in _templates(tokenizer) for tag in MARKUP.findall(template))
    if broken := [tag for tag in tags if len(tokenizer.encode(tag, add_special_tokens=False)) > 1]:
        yield (
            f"the chat template writes {', '.join(broken)}, of which the tokenizer makes several tokens each, as of "
            "any text; a template made for this tokenizer (data.chat_template) writes tokens that it knows"
        )


def _templates(tokenizer: Any) -> list[str]:
    """Return the texts of the template, or of those for several uses."""
    given = tokenizer.chat_template or {}
    return list(given.values()) if isinstance(given, Mapping) else [given]


@lru_cache(maxsize=64)
def _variables(template: str) -> frozenset[str] | None:
    read = parsed(template)
    return frozenset(meta.find_undeclared_variables(read)) if read else None
